"""The data of a run, and the checks of its settings that need them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.check import check_ids, check_labels
from dlrm_jax.data.chosen_labels import with_labels
from dlrm_jax.data.directory import Findings, load_directory
from dlrm_jax.data.unseen_ids import unseen_ids
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.build import check_table_settings
from dlrm_jax.training.config_data import for_data, generate_data
from dlrm_jax.training.label_settings import check_label_settings
from dlrm_jax.training.losses import own_function
from dlrm_jax.training.measures import check_columns
from dlrm_jax.training.model import model_class

Source = Dataset | Path | str | None
"""Data: a data set, a directory of prepared arrays, a raw file; None for generated examples."""


def is_new(workdir: Path | None) -> bool:
    """Whether a run begins here. One that goes on keeps settings that earlier versions took."""
    if workdir is None:
        return True
    # A killed save leaves a hidden directory, which the next one deletes.
    there = on_process_0(lambda: [path.name for path in workdir.glob("checkpoints/*")])
    return not any(name.isdecimal() for name in there)


def check_effects(config: Config, source: Source) -> None:
    """Checks that settings of a new run have an effect on these tables and data.

    Args:
        config: config with the tables of the data.
        source: where the data come from.

    Raises:
        UserError: one has none; the message names the field.
    """
    check_table_settings(config)
    check_target(config)
    is_raw = isinstance(source, str | Path) and not Path(source).is_dir()
    if config.min_count > 1 and not is_raw:
        raise UserError(
            f"min_count: it has no effect without a raw file, got {config.min_count}; prepared "
            f"arrays have that of their preparation"
        )


def check_target(config: Config) -> None:
    """Checks, for a new run, that its target is an AUC; earlier versions took any number."""
    if config.target_auc > 1:
        raise UserError(f"target_auc: expected at most 1, got {config.target_auc}")


def load_data(config: Config, source: Source, rule: str = "") -> tuple[Config, Dataset]:
    """The data, and the config with the tables that it needs.

    Args:
        config: config of the run.
        source: where the data come from.
        rule: rule of the split of a raw file, see `load_dataset`.

    Raises:
        UserError: the data can't be read, or hold an id that its table doesn't have, a label that
            the loss doesn't take, or a sample weight that is negative or not finite.
    """
    if source is None:
        if config.labels:
            raise UserError(f"labels: generated examples have one, got {','.join(config.labels)}")
        if config.unseen_rate:
            raise UserError(
                f"unseen_rate: generated ids stand for no values, so none is unseen, got "
                f"{config.unseen_rate}; leave it out"
            )
        check_label_settings(config, ("label",))
        data = generate_data(config)
        check_columns(config, data)
        return config, data
    data = source if isinstance(source, Dataset) else _read(Path(source), config.min_count, rule)
    data = with_labels(data, config.labels or data.labels)
    check_data_settings(config, data)
    for name, split in data.splits.items():
        check_ids(split, data.table_rows, data.bag_lengths, name, data.id_ranges, data.columns)
    check_data_labels(config, data)
    return for_data(config, data), data


def check_data_settings(config: Config, data: Dataset) -> None:
    """Checks that settings fit what a data set is, without reading its examples.

    Raises:
        UserError: one asks for labels, columns or ids that the data don't have, or has no effect
            on them; the message names the field.
    """
    check_label_settings(config, data.labels)
    unseen_ids(data, config.unseen_rate, config.seed)
    check_columns(config, data)


def check_data_labels(config: Config, data: Dataset) -> None:
    """Checks the labels of all splits, see `check_split_labels`."""
    for name, split in data.splits.items():
        # All are read, 16 GB of Criteo's Terabyte: by one process for all of them.
        check = functools.partial(check_split_labels, config, split, name, data.labels)
        on_process_0(check)


def check_split_labels(config: Config, split: Split, name: str, labels: Sequence[str]) -> None:
    """Checks that labels are those that the loss and the model take.

    Args:
        config: config of the run.
        split: examples.
        name: name of the split, for messages.
        labels: names of the labels.

    Raises:
        UserError: one isn't; the message names its row.
    """
    soft = config.loss == "mse" or own_function(config.loss)
    chained = len(labels) > 1 and model_class(config).chained_labels
    check_labels(split, name, soft, labels, chained)


def _read(path: Path, min_count: int, rule: str) -> Dataset:
    if path.is_dir():
        # All files of a directory may have to be read: by one process for all of them.
        findings = on_process_0(lambda: Findings.of(load_directory(path)))
        return load_directory(path, Findings(*findings))
    from dlrm_jax.data.dataset import load_dataset  # with what reads raw files, such as Polars

    return load_dataset(path, cache_directory() / "criteo", min_count, rule)
