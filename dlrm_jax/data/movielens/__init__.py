"""GroupLens' MovieLens data sets (Harper and Konstan, 2015, "The MovieLens Datasets").

A directory (`formats`, `fields`) → rows of each split (`splits`) → ids (`features`, `history`),
for ranking also sampled negatives (`negatives`) → data sets (`loading`).
"""
