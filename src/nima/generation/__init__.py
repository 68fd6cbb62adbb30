"""Text that a model writes: how it is decoded, and samples of it to read and to compare."""
