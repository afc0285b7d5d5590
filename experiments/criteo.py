"""The main job: trains and evaluates DLRM, or another model.

    python -m experiments.criteo --mesh=2x4

It is ``python -m dlrm_jax train`` under the name of the data in the paper.
"""

from dlrm_jax.cli.main import main

if __name__ == "__main__":
    main("train")
