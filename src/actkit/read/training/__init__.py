"""How activations change while a network trains."""
