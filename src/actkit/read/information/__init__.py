"""How much activations tell, and how far they are more than their parts."""
