"""What ids ordered by frequency bring."""
