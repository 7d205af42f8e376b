"""What single neurons stand for."""
