"""Gates and MLPs."""
