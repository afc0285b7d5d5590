"""Reads an artifact: the directory that is a model, without its class, config or compiler."""
