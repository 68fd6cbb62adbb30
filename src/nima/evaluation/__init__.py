"""Judging a model: how likely it finds text, and what else scores the same text."""
