"""A two-tower retrieval model on the library's embedding tables."""
