"""Which texts are worth reading: length, repetition, symbols, language."""
