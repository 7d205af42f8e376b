"""The family `trace`; its methods come with later issues."""
