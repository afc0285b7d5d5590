"""Dense models, which know no tables and no mesh."""
