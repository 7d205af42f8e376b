"""Edits: what to write at a site, and where; their operations, and files of them."""
