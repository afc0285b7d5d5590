"""The time of a train step on paper: its operations, their seconds, and what overlaps."""
