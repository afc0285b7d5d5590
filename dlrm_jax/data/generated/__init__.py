"""Generated examples with a planted teacher, whose AUC is the best that a model can reach."""
