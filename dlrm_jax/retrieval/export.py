"""Writes an artifact of two towers: the tower of the user, and an index of all items."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.notes import FeatureNote, TableNote
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.artifact.tables import write_rows
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.metadata import METADATA
from dlrm_jax.feature_names import file_name
from dlrm_jax.files import creating
from dlrm_jax.inference.artifact_scorer import PREPROCESSING
from dlrm_jax.inference.scored_rows import evenly_spaced_rows
from dlrm_jax.retrieval import files, golden_queries
from dlrm_jax.retrieval.columns import dense_names
from dlrm_jax.retrieval.evaluation import Questions
from dlrm_jax.retrieval.index.attributes import Attribute, Attributes
from dlrm_jax.retrieval.index.index_files import write_index
from dlrm_jax.retrieval.index.item_index import ItemIndex, Kind
from dlrm_jax.retrieval.ranking import ranking_metrics
from dlrm_jax.retrieval.retriever import Retriever
from dlrm_jax.retrieval.task import Task
from dlrm_jax.retrieval.trained_towers import TrainedTowers
from dlrm_jax.serving.export import copy_vocabularies, made_by, note_lookup, write_dense

_ROWS = 1 << 14


def export(
    towers: TrainedTowers,
    output: Path,
    name: str,
    row_format: RowFormat = "float32",
    kind: Kind = "flat",
    cells: int = 0,
    probes: int = 16,
) -> Manifest:
    """Writes an artifact, completely or not at all.

    Args:
        towers: trained towers.
        output: directory to make.
        name: name of the model.
        row_format: row format of the user's tables.
        kind: kind of the index.
        cells: number of cells of an ``ivf`` index; 0 for twice the root of the items.
        probes: cells that a query reads by default.

    Raises:
        UserError: the directory exists or can't be written, the checkpoint can't be read, or there
            are fewer items than cells.
    """
    task, data = towers.task, towers.task.data
    dense = dense_names(data.directory, data.train.dense_features)
    vectors = towers.retrieval.items(towers.state)
    with creating(output) as directory:
        directory.mkdir()
        index = ItemIndex.build(vectors, _attributes(task), kind, cells, probes)
        key = task.item.key_feature
        assert key is not None
        note = write_index(
            directory,
            index,
            _values(task),
            data.columns[key],
            tuple(dense[i] for i in task.user.dense),
        )
        manifest = dataclasses.replace(
            _write_tower(towers, directory, name, row_format), retrieval=note
        )
        model = towers.model.dense

        def of_users(layers, dense, vectors):
            made = model.model(layers).user(dense, vectors)
            return made[:, 0] if note.dim == 1 else made

        manifest = write_dense(model.layers, of_users, directory, manifest)
        if data.directory and (data.directory / METADATA).exists():
            copy_vocabularies(data.directory, directory / PREPROCESSING)
        retriever = Retriever(Artifact.open(directory, manifest), index)
        golden_queries.write(directory, retriever, _golden_users(task))
        metrics = {
            split: {
                "trained": _recalls(towers.retrieval.metrics(towers.state, questions)),
                "exported": _recalls(_measured(task, retriever, questions)),
            }
            for split, questions in task.questions.items()
        }
        manifest = dataclasses.replace(manifest, metrics=metrics, files=note_files(directory))
        manifest.write(directory)
    return manifest


def _write_tower(
    towers: TrainedTowers, directory: Path, name: str, row_format: RowFormat
) -> Manifest:
    """Writes the tables of the user, and describes them."""
    config, collection = towers.model.config, towers.model.learner.collection
    count = len(towers.task.user.features)
    names, lengths = config.table_names[:count], config.table_bag_lengths[:count]
    ends = np.cumsum([0, *lengths]).tolist()
    columns = dict(zip(names, itertools.pairwise(ends), strict=True))
    lookups = tuple(
        note_lookup(x, columns[x.feature]) for x in collection.lookups if x.feature in columns
    )
    (directory / "tables").mkdir()
    tables = []
    for table, rows in towers.model.tables():
        if any(lookup.table == table.name for lookup in lookups):
            file = f"tables/{file_name(table.name)}.rows"
            tables.append(TableNote(table.name, table.rows, table.dim, row_format, file))
            write_rows(directory / file, rows, row_format)
    features = zip(names, config.table_rows[:count], lengths, strict=True)
    return Manifest(
        name=name,
        step=int(towers.model.metadata["step"]),
        made_by=made_by(),
        data=towers.task.data.fingerprint,
        dense_features=len(towers.task.user.dense),
        features=tuple(FeatureNote(*feature) for feature in features),
        labels=(),
        shift=0.0,
        tables=tuple(tables),
        lookups=lookups,
        layers=(),
        programs=(),
        files={},
    )


def _values(task: Task) -> pl.DataFrame:
    """The values of the items, and their numbers of training rows, as in ``items.parquet``."""
    values = files.values_frame(task.data, task.values, task.item, task.items.ids)
    counts = {"rows": task.items.rows, "positives": task.items.positives}
    return values.with_columns(**{x: pl.Series(y) for x, y in counts.items()})


def _attributes(task: Task) -> Attributes:
    """The item's categorical columns besides the one that tells items apart."""
    found, ids, place, width = [], [np.empty((len(task.items), 0), np.int32)], 0, 0
    for feature in task.item.features:
        length = task.data.bag_lengths[feature]
        own = task.items.ids[:, place : place + length]
        place += length
        if feature == task.item.key_feature:
            continue
        known = task.values.known(feature)
        if known is not None:  # ids of missing, unseen and rare values stand for no single one
            own = np.where(np.isin(own, known), own, -1).astype(np.int32)
        there = np.unique(own[own >= 0]).astype(np.int32)
        values = pl.DataFrame(
            [task.values.decode(feature, there).alias("value"), pl.Series("id", there)]
        )
        name = task.data.columns[feature]
        found.append(Attribute(name, (width, width := width + length), values))
        ids.append(own)
    return Attributes(np.ascontiguousarray(np.concatenate(ids, axis=1)), tuple(found))


def _golden_users(task: Task) -> Examples:
    """Users of questions, evenly spaced; of training rows if there are none."""
    asked = task.questions.get("test") or task.questions.get("validation") or task.train
    rows = asked.rows[evenly_spaced_rows(len(asked), golden_queries.QUERIES)]
    return _users(task, asked.split, rows)


def _users(task: Task, split: Split, rows: Int64[np.ndarray, " n"]) -> Examples:
    """The features of the user of some rows."""
    examples = split.take(rows)
    dense = task.user.dense_of(examples).astype(np.float32)
    weights = examples.sample_weights
    return Examples(dense, task.user.ids(examples), np.zeros(len(rows), np.float32), weights)


def _measured(task: Task, retriever: Retriever, questions: Questions) -> dict[str, float]:
    """Recall and NDCG of the exported index."""
    places, weights, most = [], [], max(task.settings.recall_at)
    for first in range(0, len(questions), _ROWS):
        part = slice(first, first + _ROWS)
        users = _users(task, questions.split, questions.rows[part])
        k = min(most, retriever.index.items)
        found = retriever.search(users, k).items == questions.chosen[part, None]
        places.append(np.where(found.any(axis=1), found.argmax(axis=1), most))
        if users.sample_weights is not None:
            weights.append(users.sample_weights.astype(np.float64))
    of_rows = np.concatenate(weights) if weights else None
    return ranking_metrics(np.concatenate(places), task.settings.recall_at, of_rows)


def _recalls(metrics: dict[str, float]) -> dict[str, float | None]:
    """The recalls as JSON has them: None if no row has a weight."""
    recalls = {name: float(x) for name, x in metrics.items() if name.startswith("recall@")}
    return {name: None if math.isnan(x) else x for name, x in recalls.items()}
