"""What the eigenvalues of activations tell."""
