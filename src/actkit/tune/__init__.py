"""The family `tune`; its methods come with later issues."""
