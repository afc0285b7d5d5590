"""HTTP for models of sequences: histories in, the best items out."""
