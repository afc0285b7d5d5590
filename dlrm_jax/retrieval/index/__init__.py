"""An index of items: vectors in int8, cells, filters, and the search for the best items."""
