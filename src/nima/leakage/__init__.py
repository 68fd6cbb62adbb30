"""What the splits must not share: overlap with what is tested on, found and reported or removed."""
