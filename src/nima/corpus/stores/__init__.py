"""Buckets and servers: how they are reached, and what their failures mean."""
