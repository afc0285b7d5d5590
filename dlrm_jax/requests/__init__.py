"""Ranking of a request's candidates by the long history of its user."""
