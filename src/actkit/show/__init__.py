"""Pictures and pages of plain tensors with names."""
