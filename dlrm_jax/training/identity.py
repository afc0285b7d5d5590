"""The identity of a run: settings that must not change between saving and restoring."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.saved_config import saved_fields

Groups = Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]
"""Functions for groups of settings, by name, that give what was saved under today's names."""


def check_identity(
    path: Path,
    saved: Mapping[str, Any],
    identity: Mapping[str, Any],
    groups: Groups,
    earlier_data: Sequence[str],
    for_new_data: str = "",
) -> None:
    """Checks that a checkpoint is of a run with these settings.

    Args:
        path: directory of the checkpoint.
        saved: identity in its metadata.
        identity: identity of this run.
        groups: functions for values that are groups, see `checkpoint.Checkpoints`.
        earlier_data: other values of "data" that mean the same data.
        for_new_data: sentence on what takes new data, the end of the message on other data.

    Raises:
        UserError: it is of another run; the message names the first difference.
    """
    for name, found, expected in _differences(path, saved, identity, groups):
        if name != "data":
            raise UserError(
                f"checkpoint {path} is of another run: its {name} is {_short(found)}, this run's "
                f"is {_short(expected)}; give the same settings, or another workdir"
            )
        if found not in earlier_data:
            raise UserError(
                f"checkpoint {path} is of another run: it was trained on other data (their "
                f"fingerprint is {_short(found)}, that of these is {_short(expected)}); give "
                f"the data of the training, or another workdir"
                f"{for_new_data and f'. {for_new_data}'}"
            )


def _differences(
    path: Path, saved: Mapping[str, Any], identity: Mapping[str, Any], groups: Groups
) -> Iterator[tuple[str, Any, Any]]:
    """Name, value in a checkpoint and value here of each setting that differs."""
    there, here = saved_fields(saved), _as_json(identity)
    for name, expected in here.items():
        found = _as_json(there.get(name))
        pairs = {name: (found, expected)}
        if name in groups:
            try:
                group = _as_json(groups[name](found if isinstance(found, dict) else {}))
            except UserError as error:
                raise UserError(f"checkpoint {path}: {error}") from error
            pairs = {each: (group.get(each), value) for each, value in expected.items()}
        for each, (before, now) in pairs.items():
            compared = _without_rows if each == "dynamic_ids" else _as_it_is
            if compared(before) != compared(now):
                yield each, before, now


def _without_rows(items: Any) -> Any:
    """Settings of dynamic ids, TABLE=ROWS:RULE=VALUE:…, without rows and parts: they may change."""
    if not isinstance(items, list):
        return items
    without = [re.sub(r":parts=\d+(?=:|$)", "", str(item)) for item in items]
    return [re.sub(r"^(.*?)=\d+((?::.*)?)$", r"\1\2", item) for item in without]


def _as_it_is(value: Any) -> Any:
    return value


def _as_json(value: Any) -> Any:
    """A value as it comes back from a file."""
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "…"
