"""Pure functions on tensors that several families use."""
