"""The effect of ids ordered by frequency."""
