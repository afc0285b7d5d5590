"""Ids that come and go: which of a table's rows belongs to which 64-bit id, decided while training.

Maps live on the host, in the loader's thread. Tables, lookups and steps see rows, as ever.
"""
