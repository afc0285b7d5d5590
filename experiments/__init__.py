"""The experiments of the DLRM paper; each is run as ``python -m experiments.NAME``."""
