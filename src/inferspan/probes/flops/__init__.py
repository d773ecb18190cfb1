"""FLOPs: a model's matrix products, listed once, and the shapes of each call."""
