"""Serves predictions of exported models: rows as they are stored, and lookups of them."""
