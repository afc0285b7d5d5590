"""GroupLens' MovieLens data sets (Harper and Konstan, 2015, "The MovieLens Datasets").

a directory (`formats`, `fields`) → who is in which split (`splits`) → ids (`features`,
    `history`), for ranking beside sampled negatives (`negatives`) → `loading`
"""
