"""How much each part matters: heads, layers, positions, neurons."""
