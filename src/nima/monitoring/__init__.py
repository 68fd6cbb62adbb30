"""What a run shows of itself while it trains; nothing here changes a result."""
