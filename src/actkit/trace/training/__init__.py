"""How mechanisms come about in training, and training that makes them."""
