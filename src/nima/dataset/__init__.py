"""The corpus as a model reads it: token shards on disk, and which document is in which split."""
