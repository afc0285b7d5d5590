"""The flags of commands that take a trained model as it is."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, define_mesh
from dlrm_jax.cli.predicting_model import PredictingModel, find_model
from dlrm_jax.console import status


def define_model_flags() -> None:
    """``--mesh``, ``--batch_size``, ``--preprocessing`` and ``--model``."""
    define_mesh()
    flags.DEFINE_integer("batch_size", 8192, "Rows predicted at a time; such as 65536.", 1)
    flags.DEFINE_string(
        "preprocessing",
        None,
        "Directory of arrays whose vocabularies the model was trained with; without it, those that "
        "the run keeps; such as criteo.",
    )
    flags.DEFINE_string(
        "model",
        None,
        "Class of your own that the checkpoint names as its model; it is imported only if you name "
        "it; such as my_models:Mine.",
    )


def chosen_model() -> PredictingModel:
    """The model that the flags name; the checkpoint is printed if it was chosen.

    Raises:
        UserError: see `find_model`.
    """
    path = Path(FLAGS.checkpoint)
    model = find_model(path, Path(FLAGS.preprocessing) if FLAGS.preprocessing else None)
    if model.path != path:
        status(f"checkpoint {model.path}")
    return model
