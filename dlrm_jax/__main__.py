"""``python -m dlrm_jax COMMAND --flags``."""

from dlrm_jax.cli.main import main

main()
