"""The config of two towers on the columns of a data set."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.mesh import check_batch_size
from dlrm_jax.retrieval.columns import Side
from dlrm_jax.retrieval.settings import RetrievalSettings
from dlrm_jax.training.build import check_config

MODEL = "dlrm_jax.retrieval.towers:TwoTower"


def config_of(
    config: Config, settings: RetrievalSettings, data: Dataset, user: Side, item: Side
) -> Config:
    """A config of `MODEL` with the tables of the two sides' columns, the user's first.

    Columns with one vocabulary share a table, whichever side they are on. The config's learning
    rate is that of the towers, the settings have that of the tables.
    """
    features = [*user.features, *item.features]
    names = [data.columns[i] for i in features]
    owners: dict[str, str] = {}
    shared = []
    for name in names:
        vocabulary = data.shared.get(name, name)
        owner = owners.setdefault(vocabulary, vocabulary if vocabulary in names else name)
        if owner != name:
            shared.append(f"{name}={owner}")
    rate = settings.table_learning_rate
    rest = [
        f"{owner}={config.optimizer}:{rate}"
        for owner in dict.fromkeys(owners.values())
        if not any(x.startswith(f"{owner}=") for x in config.table_optimizers)
    ]
    return dataclasses.replace(
        config,
        table_optimizers=(*config.table_optimizers, *rest),
        features=tuple(names),
        table_rows=tuple(data.table_rows[i] for i in features),
        bag_lengths=tuple(data.bag_lengths[i] for i in features),
        shared_tables=tuple(shared),
        dense_features=len(user.dense) + len(item.dense),
        model_options=(
            f"user_fields={len(user.features)}",
            f"user_dense={len(user.dense)}",
            f"tower={'-'.join(map(str, settings.tower))}",
            f"softmax_temperature={settings.temperature}",
        ),
    )


def check_settings(config: Config, settings: RetrievalSettings, mesh: Mesh) -> None:
    """Checks what can be checked before the data are read.

    Raises:
        UserError: there is no such optimizer, or the mesh doesn't divide a number of examples.
    """
    check_config(config, mesh)
    check_batch_size(mesh, "negatives", settings.negatives)
