"""Models of sequences on MovieLens, on a log of your own, or on a planted taste."""
