"""Publishing: a model that is served while it is trained, some seconds old."""
