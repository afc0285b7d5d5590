"""Search for the settings of a run: the space, the trials, their order and results."""
