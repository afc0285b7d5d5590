"""Trained models in use: predictions, tables as files, vocabularies."""
