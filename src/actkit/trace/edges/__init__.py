"""How much each connection between parts matters."""
