"""What attention heads and MLPs do, and where they write it."""
