"""Attention over sequences of any lengths that lie packed one behind the other."""
