"""Text before tokens: from any source and format to clean documents.

Deliberately imports nothing: a stage that only reads documents must not depend on how they were made.
"""
