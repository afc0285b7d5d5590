"""Deep learning recommendation models on sharded tables with row-sparse updates."""
