"""What scan and compare found: in the terminal, as a page, as JSON."""
