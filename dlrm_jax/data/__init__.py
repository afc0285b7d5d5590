"""Data: formats, preparation, generated examples, and batches for training and evaluation."""
