"""A small run that is published, step by step."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from saved_run import CONFIG, DATA, examples, learner_on, save
from setups import step_of

from dlrm_jax.artifact.delta import Delta
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.config import Config
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.live_model import LiveModels
from dlrm_jax.publishing.published import Published, bases_in, newest
from dlrm_jax.publishing.publisher import Publisher, Settings
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.live_maps import LiveMaps, TranslatedBatches
from dlrm_jax.training.publication import ToldBatches
from dlrm_jax.training.touched_rows import TouchedRows


class Run:
    """A run whose clock stands until `publish`.

    Attributes:
        said: lines for the user.
        state: state, after as many steps.
    """

    def __init__(self, workdir: Path, mesh: str, config: Config, publisher: Any, said: list[str]):
        self.workdir, self.config, self.said = workdir, config, said
        self.learner = learner_on(mesh, config)
        self.state = self.learner.init(config.seed)
        self.publisher: Publisher = publisher
        self.maps = id_maps_of(self.learner.collection, config.seed)
        self.live: LiveMaps | None = None
        self.now = 0.0

    def begin(self, state: Any = None) -> None:
        if state is not None:
            dense, tables, maps = state
            if self.maps:
                self.maps.load(maps)
            embedding = self.learner.collection.from_arrays(lambda x: tables[x.name], 0)
            specs = dataclasses.replace(self.learner.state_specs(), embedding=None)
            placed = jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), dense, specs)
            self.state = dataclasses.replace(placed, embedding=embedding)
        batches: Any = TrainBatches(
            examples(2048, config=self.config), self.config.batch_size, seed=0
        )
        if self.maps:
            args = self.learner, self.maps, self.config.seed, int(self.state.step)
            self.live = LiveMaps(*args)
            batches = TranslatedBatches(batches, self.live)
        self.publisher.begin(self.state, self.live)
        self._batches = ToldBatches(batches, self.publisher)

    def train(self, steps: int) -> None:
        """Trains; nothing is published."""
        step = step_of(self.learner)
        for _ in range(steps):
            done = int(self.state.step)
            batch = self.learner.put(self._batches[done])
            if self.live:
                self.state = self.live.begin(self.state, done)
            self.state, _ = step(self.state, batch)
            due = self.publisher.is_due(done + 1)
            self.publisher.step_done(self.state, done + 1, due)

    def publish(self) -> None:
        """Trains a step, publishes its state, and waits until it is written."""
        self.settle()
        self.now += 1000
        self.train(1)
        self.settle()

    def settle(self) -> None:
        """Waits until a delta is written that was begun."""
        if self.publisher._writing:
            wait([self.publisher._writing[1]])
        self.publisher._settle(wait=False)

    def bases(self) -> list[Path]:
        return bases_in(self.workdir.parent / "models")

    def deltas(self) -> list[Delta]:
        """The deltas of the newest base."""
        published = newest(self.workdir.parent / "models")
        assert published
        return list(published.chain.rest())

    def arrays(self) -> Any:
        """The state as a checkpoint has it, which any mesh goes on from."""
        saved = self.learner.collection.to_arrays(self.state.embedding)
        tables = {x.name: {k: np.asarray(v) for k, v in arrays.items()} for x, arrays in saved}
        dense = jax.tree.map(np.asarray, dataclasses.replace(self.state, embedding=None))
        return dense, tables, self.maps_now().arrays() if self.live else None

    def maps_now(self) -> Any:
        """The maps of the state; None without dynamic ids."""
        return self.live.maps_at(int(self.state.step)) if self.live else None

    def exported(self, path: Path, row_format: RowFormat = "float32") -> Path:
        """A full export of the state, by its checkpoint."""
        (self.workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
        given = self.workdir, self.learner, self.state, self.config
        checkpoint = save(*given, self.maps_now())
        export(TrainedModel.read(checkpoint), path, "small", row_format)
        return path


@contextmanager
def run_of(
    tmp_path: Path,
    row_format: RowFormat = "float32",
    mesh: str = "1x1",
    config: Config = CONFIG,
    **settings: Any,
) -> Iterator[Run]:
    learner, said = learner_on(mesh, config), []
    models = LiveModels(config, learner, DATA, 1.0, tmp_path / "run")
    touched = TouchedRows(learner.collection)
    chosen = Settings(tmp_path / "models", 10, "small", row_format)._replace(**settings)
    publisher = Publisher(chosen, models, touched, said.append, lambda: run.now)
    run = Run(tmp_path / "run", mesh, config, publisher, said)
    with publisher:
        yield run


def compacted(directory: Path) -> Path:
    """The base that the newest one and all its deltas give."""
    published = newest(directory)
    assert published
    count = len(list(published.chain.rest()))
    found: list[Published] = []
    compact(published, count, threading.Lock(), found.append)
    return found[0].directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


SHARED = dataclasses.replace(
    CONFIG,
    table_rows=(7, 3000, 3000),
    shared_tables=("C3=C2",),
    placements=("C1=replicated", "C2=row_wise"),
)
DYNAMIC = dataclasses.replace(
    CONFIG,
    table_rows=(7, 3000, 3000),
    shared_tables=("C3=C2",),
    placements=("C2=row_wise",),
    dynamic_ids=("C2=700:max_age=4:evict_share=0.1:defaults=3", "C1=9"),
    frozen_tables=("C1",),
)
COMPOSED = dataclasses.replace(
    CONFIG, compression="quotient_remainder", compress_above=100, collisions=4, placements=()
)


def flip(path: Path) -> None:
    """Changes the last bit of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
