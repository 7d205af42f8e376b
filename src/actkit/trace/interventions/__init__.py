"""Change what a network knows, or a direction in it, and see what follows."""
