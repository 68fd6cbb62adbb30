"""How well a model does, while it is trained and afterwards: how likely it finds text, and drawings of it."""
