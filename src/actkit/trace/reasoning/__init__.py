"""How answers come about, step by step."""
