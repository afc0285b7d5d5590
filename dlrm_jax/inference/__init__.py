"""Use of trained models: predictions, tables as files, vocabularies."""
