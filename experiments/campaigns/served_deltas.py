"""Single tries of `served_kills`: a server that is killed while deltas arrive, and its answers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import threading
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.delta_chain import DeltaChain, delta_path, deltas_of
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.data.arrays import Examples
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.published import Published, bases_in
from experiments.benchmarks.peers.workers.http_bodies import FORMS
from experiments.benchmarks.serving import servers
from experiments.campaigns.publications import Target as Training
from experiments.campaigns.served_versions import close
from experiments.campaigns.tally import Tally

CASES = ("while deltas arrive", "while deltas and a base arrive")
_FORM = FORMS["json"]
_DELTAS = 8
_PAUSE = 0.3  # seconds between what arrives, at most
_CATCH_UP = 30.0  # seconds in which a server has the last state


@dataclasses.dataclass(frozen=True)
class Target:
    """A base, deltas of it, and what each state predicts.

    Attributes:
        base: base.
        new_base: base of all of these deltas.
        examples: examples that are asked for.
        states: probabilities of the base, and of it and its first deltas.
    """

    base: Path
    new_base: Path
    examples: Examples
    states: list[np.ndarray]

    @classmethod
    def prepare(cls, scratch: Path) -> Target:
        """Trains and publishes a model, and makes an artifact of each state."""
        scratch.mkdir(exist_ok=True)
        ended = Training(scratch, 0).job(scratch).run(scratch / "run")
        if ended.outcome != "done":
            raise RuntimeError(f"{ended}\n{ended.stderr}")
        bases = bases_in(scratch / "models")
        base = max(bases, key=lambda x: len(list(deltas_of(x).glob("0*"))))
        manifest = Manifest.read(base)
        examples, made = _examples(manifest), [base]
        for last in range(1, 1 + min(_DELTAS, len(list(deltas_of(base).glob("0*"))))):
            shutil.copytree(base, copy := scratch / f"{last}" / base.name)
            shutil.copytree(deltas_of(base), deltas_of(copy))
            published = Published(copy, manifest, DeltaChain(copy, manifest))
            compact(published, last, threading.Lock(), lambda x: made.append(x.directory))
        return cls(base, made[-1], examples, [Predictor.load(x).predict(examples) for x in made])

    def losses(self, directory: Path, has_base: bool, chance: random.Random) -> list[str]:
        """Kills a server, starts it again; what was wrong with its answers."""
        models, arrived = directory / "models", [0]
        shutil.copytree(self.base, models / self.base.name)
        instants = len(self.states) - 1 + has_base
        killed = chance.randrange(instants)
        again = chance.randint(killed + 1, instants)  # what has arrived when it is started again
        losses: list[str] = []

        def come(numbers: range) -> None:
            for number in numbers:
                time.sleep(chance.uniform(0, _PAUSE))
                self._come(models, number)
                arrived[0] = min(number + 1, len(self.states) - 1)

        with _served(models) as server, _Client(server.port, self, arrived, 0) as client:
            come(range(killed))
            arrived[0] = min(killed + 1, len(self.states) - 1)  # a request may see it at once
            self._come(models, killed)
            time.sleep(chance.uniform(0, _PAUSE))
            client.ends = True
            os.kill(server.pid, signal.SIGKILL)
        losses += client.losses
        if not client.answers:
            losses.append("no answer before the kill")
        come(range(killed + 1, again))
        with _served(models) as server, _Client(server.port, self, arrived, arrived[0]) as client:
            come(range(again, instants))
            deadline = time.monotonic() + _CATCH_UP
            while client.low < len(self.states) - 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            client.ends = True
        losses += client.losses
        if client.low < len(self.states) - 1:
            losses.append(f"the last answer is of state {client.low} of {len(self.states) - 1}")
        return losses

    def _come(self, models: Path, number: int) -> None:
        """Gives the server the next delta, from 0 on, or the new base, as a publisher does."""
        if number == len(self.states) - 1:
            source, final = self.new_base, models / self.new_base.name
        else:
            source = delta_path(deltas_of(self.base), number + 1)
            final = delta_path(deltas_of(models / self.base.name), number + 1)
        final.parent.mkdir(exist_ok=True)
        shutil.copytree(source, writing := final.with_name(f".{final.name}"))
        writing.rename(final)


class _Client(threading.Thread):
    """Asks all the time until `ends`; a context manager, whose end waits for the last answer.

    Each answer must be of one state: of what has arrived, and not older than the answer before.
    """

    def __init__(self, port: int, target: Target, arrived: list[int], low: int):
        super().__init__(daemon=True)
        self._port, self._target, self._arrived = port, target, arrived
        body, _ = _FORM.write(target.examples.dense, np.asarray(target.examples.ids))
        self._body = body
        self.low, self.answers, self.ends = low, 0, False
        self.losses: list[str] = []

    def __enter__(self) -> _Client:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ends = True
        self.join()

    def run(self) -> None:
        while not self.ends and len(self.losses) < 3:
            try:
                found = self._ask()
            except (OSError, HTTPException, UserError) as error:
                if not self.ends:  # it isn't the kill
                    self.losses.append(f"{type(error).__name__}: {error}")
                continue
            self.answers += 1
            states = self._target.states
            for number in range(self.low, self._arrived[0] + 1):
                if close(found, states[number]):
                    self.low = number
                    break
            else:
                known = [x for x, state in enumerate(states) if close(found, state)]
                self.losses.append(
                    f"an answer of states {known or 'none'}, expected one of {self.low} to "
                    f"{self._arrived[0]}"
                )

    def _ask(self) -> np.ndarray:
        with contextlib.closing(HTTPConnection("127.0.0.1", self._port, timeout=30)) as connection:
            connection.request("POST", _FORM.path, self._body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise UserError(f"status {answer.status}: {content[:200]!r}")
        return _FORM.read(content)


def _served(models: Path) -> servers.Server:
    return servers.ours(models, "--watch=0.05")


def _examples(manifest: Manifest) -> Examples:
    rng, rows = np.random.default_rng(0), {x.name: x.rows for x in manifest.tables}
    most = [min(rows[y.table] for y in manifest.lookups if y.feature == x.name)
            for x in manifest.features]  # fmt: skip
    dense = rng.random((16, manifest.dense_features), np.float32)
    ids = rng.integers(0, most, (16, len(most)), np.int32)
    return Examples(dense, ids, np.zeros(16, np.float32))


def try_served(
    tally: Tally,
    target: Target,
    number: int,
    directory: Path,
) -> None:
    """A kill and what is served after it; without a loss no files are left."""
    chance, has_base = tally.chance("served", number), bool(number % 2)
    losses = target.losses(directory, has_base, chance)
    tally.count(CASES[has_base], losses)
    if not losses:
        shutil.rmtree(directory)
