"""The family `nn`; its methods come with later issues."""
