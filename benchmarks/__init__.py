"""Speed and quality beside peers, measured in one run; nothing here is timed by the tests."""
