"""Trains RecBole's SASRec on the MovieLens 100K that RecBole brings along, to compare with.

    python experiments/next_item/recbole_sasrec.py --seed=1 --workdir=runs/recbole-1

It runs where RecBole does: ``pip install recbole==1.2.1 'numpy<2' 'pandas<2.3' 'ray==2.6.3'`` in an
environment of its own. All is RecBole's default but the questions, which are those of
``experiments.next_item``: each user's last interaction among all items, the last but one for
validation. So: two layers and heads, width 64, dropout 0.5, a softmax over all items, batches of
2048 targets, each with the 50 interactions before it, and an end after ten epochs without a better
MRR@10, which counts 0 behind place 10. It prints the metrics of the best epoch, and writes them to
``summary.json`` of the workdir. An epoch takes a minute of a CPU.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

_PART = 128  # targets that are computed at a time


def main() -> None:
    """Reads the arguments, trains, prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workdir", type=Path, default=Path("runs/recbole"))
    parser.add_argument("--epochs", type=int, default=300, help="Epochs at most; such as 1.")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {arguments.epochs}")
    summary_file = arguments.workdir / "summary.json"
    if summary_file.exists():
        parser.error(f"--workdir: {summary_file} is there; give another directory")
    try:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--workdir: expected a directory to write to: {error}")
    try:
        recbole = prepared_recbole()
    except ImportError as error:
        raise SystemExit(
            f"expected RecBole 1.2.1 in this environment, got: {error}; see the first lines of "
            f"{__file__}"
        ) from error
    given = {
        "data_path": str(Path(recbole.__file__).parent / "dataset_example"),
        "checkpoint_dir": str(arguments.workdir),
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "mode": "full",
            "group_by": "user",
        },
        "metrics": ["Hit", "NDCG", "MRR"],
        "topk": [10, 50],
        "train_neg_sample_args": None,
        "use_gpu": False,
    }
    of = {name: importlib.import_module(f"recbole.{name}") for name in ("config", "data", "utils")}
    config = of["config"].Config(model="SASRec", dataset="ml-100k", config_dict=given)
    of["utils"].init_seed(config["seed"], config["reproducibility"])
    of["utils"].init_logger(config)
    dataset = of["data"].create_dataset(config)
    train, valid, test = of["data"].data_preparation(config, dataset)
    print(dataset, "targets", *(len(x.dataset) for x in (train, valid, test)), flush=True)
    model = lean_sasrec()(config, train.dataset)
    trainer = of["utils"].get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    _, validation = trainer.fit(train, valid, show_progress=False)
    found = trainer.evaluate(test, show_progress=False)
    results = {"validation": validation, "test": found}
    summary = {
        split: {"model": {name.replace("hit", "hr"): x for name, x in metrics.items()}}
        for split, metrics in results.items()
    }
    text = json.dumps({"seed": arguments.seed, **summary}, indent=1)
    summary_file.write_text(text, encoding="utf-8")
    print(text)


def prepared_recbole() -> Any:
    """RecBole, for today's NumPy and PyTorch."""
    torch: Any = importlib.import_module("torch")
    for old, new in {"float": float, "int": int, "bool": bool, "long": np.int64}.items():
        setattr(np, old, new)
    torch.load = functools.partial(torch.load, weights_only=False)
    found = importlib.import_module("recbole")
    # A model of its turns this on when it is imported, which all are.
    importlib.import_module("recbole.utils.utils")
    importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(False)
    return found


def lean_sasrec() -> Any:
    """RecBole's SASRec without what nothing reads: padding, and the last layer's other places.

    The gradients are its own but for rounding, at a fourth of the time.
    """
    torch = importlib.import_module("torch")
    base = importlib.import_module("recbole.model.sequential_recommender.sasrec").SASRec

    class SASRec(base):
        def encode(self, items: Any, lengths: Any) -> Any:
            items = items[:, : int(lengths.max())]
            place = torch.arange(items.size(1))
            x = self.item_embedding(items) + self.position_embedding(place)
            x, mask = self.dropout(self.LayerNorm(x)), self.get_attention_mask(items)
            *first, last = self.trm_encoder.layer
            for layer in first:
                x = layer(x, mask)
            attention, own = last.multi_head_attention, self.gather_indexes(x, lengths - 1)

            def by_head(y: Any) -> Any:
                return attention.transpose_for_scores(y).transpose(1, 2)

            query, key = by_head(attention.query(own)[:, None]), by_head(attention.key(x))
            scores = query @ key.transpose(2, 3) / attention.sqrt_attention_head_size
            scores = scores + torch.where(items != 0, 0.0, -10000.0)[:, None, None]
            weights = attention.attn_dropout(scores.softmax(-1))
            found = (weights @ by_head(attention.value(x))).transpose(1, 2).reshape(own.shape)
            found = attention.out_dropout(attention.dense(found))
            return last.feed_forward(attention.LayerNorm(found + own))

        def calculate_loss(self, interaction: Any) -> Any:
            items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
            targets, total = interaction[self.POS_ITEM_ID], 0.0
            *parts, last = lengths.argsort().split(_PART)

            def loss_of(part: Any) -> Any:
                scores = self.encode(items[part], lengths[part]) @ self.item_embedding.weight.T
                sums = torch.nn.functional.cross_entropy(scores, targets[part], reduction="sum")
                return sums / len(items)

            for part in parts:
                loss = loss_of(part)
                loss.backward()  # after the trainer's zero_grad
                total += loss.item()
            return total + loss_of(last)

    return SASRec


if __name__ == "__main__":
    main()
