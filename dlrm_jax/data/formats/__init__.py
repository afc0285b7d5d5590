"""File formats: Criteo's text and binary form, CSV, compressed files, NumPy files."""
