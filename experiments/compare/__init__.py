"""Compares models on equal terms."""
