"""Documents to token shards, by many workers."""
