"""Ways to give the ids of a drifting log rows, compared day by day."""
