"""What all trials of a search have in common, and how two searches differ."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from dlrm_jax.config import Config
from dlrm_jax.saved_config import saved_fields
from dlrm_jax.search.space import Space
from dlrm_jax.training.source_hash import source_hashes

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What all trials of a search have in common.

    Attributes:
        data: fingerprint of the data.
        config: fields of the config that decide results and aren't in the space.
        earlier_data: fingerprints that earlier versions gave the same data.
        sources: hashes of the user's own model classes, losses and metrics, by name; see
            `dlrm_jax.training.source_hash`.
    """

    data: str
    config: Mapping[str, Any]
    earlier_data: tuple[str, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def as_json(self, space: Space) -> dict[str, Any]:
        """Space and identity, as JSON gives them back."""
        dimensions = {each.name: dataclasses.asdict(each) for each in space}
        fields = {"space": dimensions, "data": self.data, "config": dict(self.config)}
        return json.loads(json.dumps(fields | {"sources": dict(self.sources)}))

    def difference(self, found: Mapping[str, Any], space: Space) -> str | None:
        """The first thing in which a search that is there differs.

        Args:
            found: result of `as_json` of that search, maybe in an earlier version.
            space: space of this one.

        Returns:
            what that search has, and this one hasn't; None if they are the same.
        """
        given = self.as_json(space)
        before, now = found["space"], given["space"]
        for name in [*now, *before]:
            if before.get(name) != now.get(name):
                both = name in before and name in now
                return f"{'other values of' if both else 'another space, as to'} {name}"
        if found["data"] not in (self.data, *self.earlier_data):
            return "other data"
        # As JSON, too: a field that is newer than the search may be a tuple.
        before, now = json.loads(json.dumps(saved_fields(found["config"]))), given["config"]
        for name in now:
            if before.get(name) != now[name]:
                return f"{name} {_short(before.get(name))}, not {_short(now[name])}"
        known = found.get("sources")
        if known is None and self.sources:  # of an earlier version
            _log.warning(
                "the trials so far don't note the source of %s; if it has changed since, give "
                "another output",
                ", ".join(self.sources),
            )
        for name, source in self.sources.items():
            if known and known.get(name) != source:
                return f"another source of {name}"
        return None


def sources_of(config: Config, space: Space) -> dict[str, str]:
    """The hash of each model, loss and metric of the user's own that trials run."""
    searched = {each.name: each.choices for each in space}
    losses = searched.get("loss", (config.loss,))
    return source_hashes(searched.get("model", (config.model,)), losses, config.metrics)


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}…"
