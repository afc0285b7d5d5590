"""The train step and the prediction of this project, timed in turn with the same work elsewhere."""
