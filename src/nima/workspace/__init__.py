"""The folder and process that a stage runs in: what it reads and writes, when it must stop."""
