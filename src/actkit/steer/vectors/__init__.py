"""What is added to activations, or put in their place."""
