"""One run of a network: inputs, hooks, and what is recorded and changed on the way."""
