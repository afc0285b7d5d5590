"""The options that arrays depend on, besides their input files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

from dlrm_jax.data.formats.csv_text import MISSING
from dlrm_jax.data.formats.lines import OnBadLine
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.data.preprocessing.split_rule import SplitRule, parse_rule
from dlrm_jax.data.special_ids import FIRST_VALUE
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_encodable

Compatible = Literal["", "reference", "torchrec"]

ONLY_EMPTY = ("",)
"""The fields of CSV that were missing values in earlier versions."""

# Fields of the schema that earlier versions hadn't: with the default, theirs are the same data.
_ADDED_TO_SCHEMA = ("shared", "bins", "groups", "label_at_least", "separator", "header")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the conversion from logs to arrays.

    Attributes:
        schema: meaning of the columns.
        min_count: minimum number of occurrences in the training split; rarer values share one id.
        max_rows: maximum number of rows of a table, 0 for no limit.
        on_bad_line: treatment of malformed lines and rows.
        compatible: name of the implementation whose ids and dense features are made from
            Criteo's columns; empty for our own. Both number values in order of first appearance
            over all data, validation and test included, and count missing values as 0.
            ``"reference"``, the DLRM paper's implementation: ids from 0, dense
            log(max(x, 0) + 1). ``"torchrec"``: ids from 2, values rarer than ``min_count`` in all
            data are 1, dense log(x - m + 2), m the smallest integer of the file.
        max_ind_range: modulus of values (reference) or ids (TorchRec), for compatible ids only:
            one number, or one per column, which is then also the rows of its table; empty for
            none.
        drop_negatives: share of the training examples with label 0 that are left out, at random.
            The reference leaves out those of validation and test, too.
        seed: seed of the random choices.
        multi_hot_sizes: number of ids that each categorical column's single id expands to, as in
            MLPerf; see `dlrm_jax.data.multi_hot`. None for bags as they are in the data.
        csv_missing: fields of CSV that are missing values. Options without it in the metadata are
            of data from Parquet alone, or of an earlier version: then only the empty field is.
        split: rule of the split, see `split_rule`. Empty for ``time`` if there is a timestamp, and
            otherwise for ``days``.

    Raises:
        UserError: a number is out of range, or options contradict each other.
    """

    schema: Schema = CRITEO
    min_count: int = 1
    max_rows: int = 0
    on_bad_line: OnBadLine = "stop"
    compatible: Compatible = ""
    max_ind_range: tuple[int, ...] = ()
    drop_negatives: float = 0.0
    seed: int = 0
    multi_hot_sizes: tuple[int, ...] = ()
    csv_missing: tuple[str, ...] = MISSING
    split: str = ""

    def __post_init__(self) -> None:
        least = 2 * FIRST_VALUE
        for name, good, expected in (
            ("min_count", self.min_count >= 1, "at least 1 (1 keeps every value)"),
            ("max_rows", not self.max_rows or self.max_rows >= least, f"at least {least}, or 0"),
            ("max_ind_range", min(self.max_ind_range, default=1) >= 1, "at least 1 each"),
            ("drop_negatives", 0 <= self.drop_negatives < 1, "from 0 to below 1"),
            ("seed", 0 <= self.seed < 10**64, "at least 0, of 64 digits at most"),
            ("multi_hot_sizes", min(self.multi_hot_sizes, default=1) >= 1, "at least 1 each"),
        ):
            if not good:
                raise UserError(f"{name}: expected {expected}, got {getattr(self, name)}")
        for name, allowed in (("compatible", Compatible), ("on_bad_line", OnBadLine)):
            if getattr(self, name) not in get_args(allowed):
                raise UserError(
                    f"{name}: expected one of {get_args(allowed)}, got {getattr(self, name)!r}"
                )
        check_encodable("csv_missing", self.csv_missing)
        if self.drop_negatives and len(self.schema.labels) > 1:
            raise UserError(
                f"drop_negatives: it is for logs of one label, got {self.drop_negatives} and "
                f"{', '.join(self.schema.labels)}; predictions of the others couldn't be corrected"
            )
        other = self.compatible
        if other and self.schema != CRITEO:
            raise UserError(f"compatible: {other} is for Criteo's columns, got a schema")
        if other and self.max_rows:
            raise UserError(f"compatible: {other} limits ids by max_ind_range, not by max_rows")
        if other == "reference" and self.min_count > 1:
            raise UserError(
                f"compatible: reference keeps every value; expected min_count=1, got "
                f"{self.min_count}"
            )
        if not other and self.max_ind_range:
            raise UserError("max_ind_range: it has no effect without compatible ids")
        columns = len(self.schema.categorical)
        for name, most in (("multi_hot_sizes", (0, columns)), ("max_ind_range", (0, 1, columns))):
            if len(getattr(self, name)) not in most:
                raise UserError(
                    f"{name}: expected one for each of the {columns} categorical columns, got "
                    f"{len(getattr(self, name))}"
                )
        if self.multi_hot_sizes and self.schema.bag_lengths:
            raise UserError("multi_hot_sizes: they are for one id per column, the schema has bags")
        if self.multi_hot_sizes and self.schema.shared:
            raise UserError(
                "multi_hot_sizes: they draw other ids for each column, the schema has shared "
                "vocabularies"
            )
        self._check_split()

    @property
    def rule(self) -> SplitRule:
        """The rule of the split."""
        return parse_rule(self.split or ("time" if self.schema.timestamp else "days"))

    def _check_split(self) -> None:
        rule, layout = self.rule, self.schema.layout
        if rule.by_row and self.compatible:
            raise UserError(
                f"split: ids compatible with {self.compatible} are in the order of the rows, which "
                f"{rule.kind} changes; expected time, days, files or none, got {self.split!r}"
            )
        if layout == "criteo" and (
            rule.kind == "column" or (rule.column and rule.column not in self.schema.columns)
        ):
            raise UserError(
                f"split: Criteo's data have the columns label, I1 to I13 and C1 to C26, none of "
                f"which says what a row is for, got {self.split!r}; give user=C1, or a schema"
            )
        if rule.column in self.schema.bag_lengths:
            raise UserError(f"split: {rule.column} holds lists, expected a column with one value")
        if rule.kind == "rows" and self.on_bad_line == "skip":
            raise UserError(
                "split: rows=FILE counts all rows of the logs, so none may be left out; expected "
                "on_bad_line stop, got skip"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ids per example of each categorical column in the arrays."""
        return self.multi_hot_sizes or self.schema.lengths

    def modulus(self, column: int) -> int:
        """The modulus of a column's values or ids; 0 for none."""
        own = self.max_ind_range * (len(self.schema.categorical) if self._one_limit else 1)
        return own[column] if own else 0

    def table_rows(self, needed: Sequence[int]) -> list[int]:
        """The rows of each table; ``needed`` are those that its ids need."""
        fixed = self.compatible == "torchrec" and self.max_ind_range and not self._one_limit
        return list(self.max_ind_range) if fixed else list(needed)

    @property
    def _one_limit(self) -> bool:
        return len(self.max_ind_range) == 1

    def to_json(self) -> dict[str, Any]:
        """The options as they are stored in the metadata, without ``csv_missing``.

        A split that earlier versions made isn't named, as they didn't.
        """
        fields: dict[str, Any] = dataclasses.asdict(self)
        fields["split"] = str(self.rule)
        del fields["csv_missing"]  # stored where CSV is read
        # Earlier versions hadn't these: theirs are the same data.
        plain = dataclasses.asdict(Schema("label", ("id",)))
        for name in _ADDED_TO_SCHEMA:
            if fields["schema"][name] == plain[name]:
                del fields["schema"][name]
        if self.rule.kind in ("days", "files"):
            del fields["split"]
        return json.loads(json.dumps(fields))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Options:
        """Reads what `to_json` returned; unknown fields are ignored.

        Raises:
            UserError: a field is missing or of another type.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        present = {name: value for name, value in fields.items() if name in names}
        present.setdefault("csv_missing", ONLY_EMPTY)
        present.setdefault("split", "days")
        try:
            present["schema"] = Schema.from_fields(present["schema"])
            for name in ("multi_hot_sizes", "max_ind_range", "csv_missing"):
                present[name] = tuple(present[name])
            if not all(isinstance(text, str) for text in present["csv_missing"]):
                raise TypeError(f"csv_missing: expected texts, got {present['csv_missing']}")
            if not isinstance(present["split"], str):
                raise TypeError(f"split: expected a text, got {present['split']}")
            return cls(**present)
        except (TypeError, KeyError, ValueError) as error:
            why = f"there is no {error}" if isinstance(error, KeyError) else error
            raise UserError(f"the options of the data are damaged: {why}") from error
