"""A two-tower retrieval model: the library under a model that isn't DLRM."""
