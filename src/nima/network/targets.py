"""What a model is trained to predict, as numbers that need no torch."""

IGNORED = -100
"""The target of a slot that is not trained; torch's own default."""
