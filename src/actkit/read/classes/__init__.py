"""How activations lie by class or condition."""
