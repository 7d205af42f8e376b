"""The family `guard`; its methods come with later issues."""
