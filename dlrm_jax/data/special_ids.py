"""The ids that vocabularies give to what isn't one of their values."""

UNSEEN = 0
"""The id of values that aren't in the vocabulary, rare ones included."""
MISSING = 1
"""The id of missing values."""
FIRST_VALUE = 2
"""The id of the most frequent value."""
