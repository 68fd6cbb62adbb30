"""Whether a recorded run comes out again, output by output."""
