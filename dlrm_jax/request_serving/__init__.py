"""HTTP for models of requests: a history, a context and candidates."""
