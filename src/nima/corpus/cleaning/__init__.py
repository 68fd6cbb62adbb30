"""Repair and removal inside a text: residue, boilerplate, personal data, secrets."""
