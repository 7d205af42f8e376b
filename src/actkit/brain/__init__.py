"""The family `brain`; its methods come with later issues."""
