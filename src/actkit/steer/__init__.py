"""The family `steer`; its methods come with later issues."""
