"""The commands of ``python -m dlrm_jax``, and what programs share."""
