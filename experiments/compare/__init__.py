"""Models compared on equal terms."""
