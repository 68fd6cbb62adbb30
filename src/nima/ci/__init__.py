"""A pushed change re-runs what it touches: the story is in `__main__`, `.ci/repro` starts it anywhere."""
