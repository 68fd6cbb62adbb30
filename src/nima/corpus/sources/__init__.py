"""Where text comes from: files, archives, packages, URLs, hubs and databases, all as streams of bytes."""
