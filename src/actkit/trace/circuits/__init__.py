"""Whether a circuit is the whole story, and what it shares with others."""
