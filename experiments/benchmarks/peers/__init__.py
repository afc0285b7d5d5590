"""Times this project's train step and prediction in turn with other implementations."""
