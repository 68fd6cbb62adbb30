"""A look at the data as the model gets it: tokens, what of them is trained, and what was rejected."""
