"""Maps from how activations are to how they should be."""
