"""The files of one day: dense features, ids, labels and optional sample weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.formats.npy import map_npy, map_npz
from dlrm_jax.data.hstacked import HStacked
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DayFiles:
    """The arrays of a day i in TorchRec's layout, mapped into memory, read-only.

    | file | array |
    |---|---|
    | ``day_i_dense.npy`` | float32 [N, D] |
    | ``day_i_labels.npy`` | int32 or float32, [N, 1] or [N]; of several, float32 [N, H] |
    | ``day_i_weights.npy`` (optional) | float32 [N] |
    | ``day_i_group_j.npy`` (for each of the groups) | int64 [N] |
    | ``day_i_rows.npy`` (optional, see `row_numbers`) | int64 [N] |
    | ``day_i_sparse.npy`` | int32 [N, C] |
    | ``day_i_sparse_multi_hot.npz`` | uncompressed ``0.npy``, ``1.npy``, …, each int32 [N, L] |

    The ids are in one of the last two. If both exist, the multi-hot file is read: MLPerf's script
    makes it from the other one and it contains those ids, too. Ids may be int64, which TorchRec's
    scripts leave behind for some days.

    Attributes:
        path: file of the ids.
        multi_hot: whether each feature has an array of its own in it.
        id_arrays: ids as stored, one [N, L] array per feature or one [N, C] array.
        examples: the examples of the day.
    """

    path: Path
    multi_hot: bool
    id_arrays: Sequence[np.ndarray]
    examples: Examples

    @classmethod
    def map(cls, directory: Path, number: int, groups: Sequence[str] = ()) -> DayFiles:
        """Maps the arrays of a day.

        Args:
            directory: directory of the arrays.
            number: number of the day.
            groups: names of the groups.

        Raises:
            UserError: arrays are missing, cut short or don't fit each other.
        """
        multi_hot = directory / f"day_{number}_sparse_multi_hot.npz"
        one_hot = directory / f"day_{number}_sparse.npy"
        sample_weights = directory / f"day_{number}_weights.npy"
        try:
            if multi_hot.exists():
                path, bags = multi_hot, _members(multi_hot)
            else:
                path, bags = one_hot, [_map_npy(one_hot)]
            examples = Examples(
                _map_npy(directory / f"day_{number}_dense.npy"),
                _as_one(path, bags),
                _without_one(_map_npy(directory / f"day_{number}_labels.npy")),
                _map_npy(sample_weights) if sample_weights.exists() else None,
                {
                    name: _map_npy(directory / f"day_{number}_group_{i}.npy")
                    for i, name in enumerate(groups)
                },
            )
        except (OSError, EOFError, ValueError) as error:
            raise UserError(
                f"{directory}: the arrays of day {number} can't be read ({error}); prepare the "
                f"data again"
            ) from error
        return cls(path, path == multi_hot, bags, examples)

    def check_bags(self, bag_lengths: Sequence[int], source: str) -> None:
        """Checks the widths of the arrays.

        Raises:
            UserError: a width differs from the bag lengths, which the source says.
        """
        widths = [bags.shape[1] for bags in self.id_arrays]
        expected = list(bag_lengths) if self.multi_hot else [sum(bag_lengths)]
        if widths != expected:
            raise UserError(
                f"{self.path}: expected arrays of {str(expected)[1:-1]} ids an example, as "
                f"{source} says, got {str(widths)[1:-1]}; prepare all days alike"
            )


def row_numbers(directory: Path, number: int, rows: int) -> Int64[np.ndarray, " N"] | None:
    """The numbers of a day's rows, which ascend in the order of the log.

    Days whose rows lie split by split have them, unless an earlier version made them.

    Args:
        directory: directory of the arrays.
        number: number of the day.
        rows: number of its rows, N.

    Raises:
        UserError: they are cut short, or those of other rows.
    """
    path = directory / f"day_{number}_rows.npy"
    if not path.exists():
        return None
    try:
        found = _map_npy(path)
        if found.dtype != np.int64 or found.shape != (rows,):
            raise ValueError(f"expected int64 [{rows}], got {found.dtype} {[*found.shape]}")
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}); prepare the data again") from error
    return found


def _members(path: Path) -> list[np.ndarray]:
    arrays = map_npz(path)
    names = [str(number) for number in range(len(arrays))]
    if sorted(arrays) != sorted(names):
        raise UserError(
            f"{path}: expected members 0.npy, 1.npy, and so on, a feature each, got "
            f"{', '.join(f'{name}.npy' for name in arrays) or 'none'}"
        )
    return [arrays[name] for name in names]


def _as_one(path: Path, bags: Sequence[np.ndarray]) -> np.ndarray | HStacked:
    if path.suffix == ".npy" and bags[0].dtype == np.int32:
        return bags[0]
    try:
        return HStacked(bags)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _without_one(labels: np.ndarray) -> np.ndarray:
    """The labels, without an axis over one of them."""
    return labels.reshape(-1) if labels.shape[1:] == (1,) else labels


def _map_npy(path: Path) -> np.ndarray:
    array = map_npy(path)
    if not array.flags.c_contiguous:
        raise UserError(f"{path}: expected an array in row-major order, got one by columns")
    return array
