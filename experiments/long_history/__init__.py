"""Ranking by long histories: on a log of your own, or on a planted interest."""
