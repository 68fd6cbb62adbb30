"""Documents, and conversations among them, to token shards, by many workers."""
