"""Pages and tables about runs: drawings, comparison, description."""
