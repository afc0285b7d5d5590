"""Time of a training step by class of operator; see ``__main__``."""
