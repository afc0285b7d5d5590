"""What arrays depend on, besides the files that they are made from."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

from dlrm_jax.data.criteo_text import OnBadLine
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.errors import UserError

Compatible = Literal["", "reference", "torchrec"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How logs become arrays.

    Attributes:
        schema: of the columns.
        min_count: values that the training part holds less often share one id.
        max_rows: rows that a table may have at most, 0 for no limit.
        on_bad_line: what happens with malformed lines and rows.
        compatible: whose ids and dense features to make of Criteo's columns, instead of our own.
            Either numbers values, missing ones among them as 0, in order of first appearance
            over all data, that of validation and test too.
            ``"reference"``, the DLRM paper's implementation: from 0, dense log(max(x, 0) + 1).
            ``"torchrec"``: from 2, values rarer than ``min_count`` in all data are 1, dense
            log(x - m + 2), m the smallest integer of the file.
        max_ind_range: for compatible ones, what the reference takes values modulo, and TorchRec
            ids; 0 for neither.
        drop_negatives: share of the training examples with label 0 that is left out, at random.
            The reference's leave out those of validation and test, too.
        seed: of what is left out.
        multi_hot_sizes: for every categorical column how many ids are made of its one, as
            MLPerf does; see `dlrm_jax.data.multi_hot`. None for bags as they are in the data.

    Raises:
        UserError: a number is out of range, or options contradict each other.
    """

    schema: Schema = CRITEO
    min_count: int = 1
    max_rows: int = 0
    on_bad_line: OnBadLine = "stop"
    compatible: Compatible = ""
    max_ind_range: int = 0
    drop_negatives: float = 0.0
    seed: int = 0
    multi_hot_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        least = 2 * vocabulary.FIRST_VALUE
        for name, good, expected in (
            ("min_count", self.min_count >= 1, "at least 1 (1 keeps every value)"),
            ("max_rows", not self.max_rows or self.max_rows >= least, f"at least {least}, or 0"),
            ("max_ind_range", self.max_ind_range >= 0, "at least 0"),
            ("drop_negatives", 0 <= self.drop_negatives < 1, "from 0 to below 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("multi_hot_sizes", min(self.multi_hot_sizes, default=1) >= 1, "at least 1 each"),
        ):
            if not good:
                raise UserError(f"{name} must be {expected}, got {getattr(self, name)}")
        if self.compatible:
            self._check_compatible()
        elif self.max_ind_range:
            raise UserError("max_ind_range has no effect without compatible ids")
        columns = len(self.schema.categorical)
        if self.multi_hot_sizes and len(self.multi_hot_sizes) != columns:
            raise UserError(
                f"multi_hot_sizes: expected one for each of the {columns} categorical columns, "
                f"got {len(self.multi_hot_sizes)}"
            )
        if self.multi_hot_sizes and self.schema.bag_lengths:
            raise UserError("multi_hot_sizes are for one id per column, the schema has bags")

    def _check_compatible(self) -> None:
        name = self.compatible
        if self.schema != CRITEO:
            raise UserError(f"compatible with {name}: expected Criteo's columns, got a schema")
        if self.max_rows:
            raise UserError(f"compatible with {name}: max_ind_range limits ids, not max_rows")
        if name == "reference" and self.min_count > 1:
            raise UserError("compatible with reference: it keeps every value, min_count must be 1")

    @property
    def lengths(self) -> tuple[int, ...]:
        """Places of each categorical column in the arrays."""
        return self.multi_hot_sizes or self.schema.lengths

    def to_json(self) -> dict[str, Any]:
        """As it stands in the metadata."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Options:
        """The opposite of `to_json`; fields of others are left out."""
        own = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in fields.items() if name in own}
        given["schema"] = Schema.from_fields(given["schema"])
        given["multi_hot_sizes"] = tuple(given["multi_hot_sizes"])
        return cls(**given)
