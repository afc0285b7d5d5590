"""Quality against compute: models of several sizes on data whose best result is known."""
