"""What the data is: a page for people, and tables for plots."""
