"""The family `find`; its methods come with later issues."""
