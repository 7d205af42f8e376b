"""What is read off a whole network, from its weights or by running it."""
