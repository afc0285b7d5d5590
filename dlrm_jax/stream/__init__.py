"""Training on a stream: segments of a growing log, in order, each row once."""
