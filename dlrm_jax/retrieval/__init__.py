"""Retrieval: two towers whose vectors find, among all items, those that a user will choose."""
