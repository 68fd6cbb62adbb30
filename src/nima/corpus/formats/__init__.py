"""From bytes to documents: encodings, parsers, kinds of records."""
