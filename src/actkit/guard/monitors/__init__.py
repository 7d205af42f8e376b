"""Watch a network while it runs."""
