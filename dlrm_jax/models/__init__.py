"""Dense models. They know no tables and no mesh."""
