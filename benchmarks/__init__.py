"""Figures of speed, measured in pairs within one run; no test is timed."""
