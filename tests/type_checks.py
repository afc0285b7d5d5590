"""The checker of annotations, by which an int is a float, as in Python's type system."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
