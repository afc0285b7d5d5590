"""Whether files of Criteo's data mean the same by missing values.

In text they are empty and have an id of their own. MLPerf's binary form stores them as 0, which is
a value there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.sources import is_criteo_binary
from dlrm_jax.errors import UserError

_log = logging.getLogger(__name__)


def check_missing_values(
    paths: Sequence[Path],
    counts: Sequence[Mapping[str, int]],
    options: Options,
    earlier: Path | None = None,
) -> None:
    """Checks that files agree with each other, and with the data whose ids they continue.

    That earlier data had no missing values doesn't say which form they had: then those of new text
    are a warning.

    Args:
        paths: the files.
        counts: number of rows without a value of the same files, by column as `columns` names
            them; none if they aren't known yet.
        options: options of the data.
        earlier: directory of the earlier data; None if there are none.

    Raises:
        UserError: a file has the binary form, and others have missing values.
    """
    if options.schema.layout != "criteo" or options.compatible:  # others count them as 0 anyway
        return
    names = options.schema.categorical
    missing = {}  # a column with missing values, by where it is
    for path, nulls in zip(paths, counts or [{}] * len(paths), strict=True):
        lacking = [name for i, name in enumerate(names) if nulls.get(f"c{i}")]
        missing |= {path: lacking[0]} if lacking else {}
    if earlier:
        before = Metadata.read(earlier)
        lacking = [name for name in before.columns if before.missing[name]]
        for path, name in missing.items() if not lacking else ():
            _log.warning(
                "%s has missing values in column %s, the data in %s had none: their row isn't "
                "trained. If those were of MLPerf's binary form, give this form here, too",
                path,
                name,
                earlier,
            )
        missing = {earlier: lacking[0]} | missing if lacking else missing
    binary = next(filter(is_criteo_binary, paths), None) if missing else None
    if binary:
        where, name = next(iter(missing.items()))
        raise UserError(
            f"{binary} is in MLPerf's binary form, which stores missing values as 0; the missing "
            f"values in {where} have an id of their own, as in column {name}. Give one form "
            f"everywhere: Criteo's text"
        )
