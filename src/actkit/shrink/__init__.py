"""The family `shrink`; its methods come with later issues."""
