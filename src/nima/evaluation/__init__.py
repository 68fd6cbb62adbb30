"""Judging a trained model on the test part, beside what compressors make of the same text."""
