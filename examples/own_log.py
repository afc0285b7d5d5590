"""From a log of your own to predictions, by the commands that you would type.

    python -m examples.own_log

Writes a small Parquet log, prepares it, trains on it and predicts for new rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

SHOPS, ITEMS = 50, 200


def make_log(rows: int, seed: int) -> pl.DataFrame:
    """Visits to shops: what was viewed before, the price, and whether a click followed."""
    rng = np.random.default_rng(seed)
    shop = rng.integers(0, SHOPS, rows)
    viewed = [rng.integers(0, ITEMS, rng.integers(0, 6)) for _ in range(rows)]
    price = rng.lognormal(3, 1, rows)
    interest = np.array([np.mean(items % 2) if len(items) else 0.5 for items in viewed])
    logit = 2 * (shop % 3 - 1) + 4 * (interest - 0.5) - 0.5 * (np.log(price) - 3)
    return pl.DataFrame(
        {
            "clicked": rng.random(rows) < 1 / (1 + np.exp(-logit)),
            "price": price,
            "shop": [f"shop {number}" for number in shop],
            "viewed": [items.tolist() for items in viewed],
        }
    )


def command(*arguments: str) -> None:
    """Runs ``python -m dlrm_jax …`` and shows what it prints."""
    print(f"\n$ python -m dlrm_jax {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "dlrm_jax", *arguments], check=True)


def main() -> None:
    """Log, arrays, model, predictions."""
    home = Path(tempfile.mkdtemp(prefix="own_log_"))
    make_log(20_000, seed=0).write_parquet(home / "log.parquet")
    make_log(1000, seed=1).drop("clicked").write_parquet(home / "new.parquet")
    schema = {
        "label": "clicked",
        "dense": ["price"],
        "categorical": ["shop", "viewed"],
        "bag_lengths": {"viewed": 5},
    }
    (home / "schema.json").write_text(json.dumps(schema))

    command("preprocess", f"--input={home}/log.parquet", f"--schema={home}/schema.json",
            f"--output={home}/log")  # fmt: skip
    command("train", f"--data={home}/log", f"--workdir={home}/run",
            "--batch_size=256", "--epochs=4")  # fmt: skip
    command("predict", f"--checkpoint={home}/run", f"--data={home}/new.parquet",
            f"--output={home}/p.csv", "--keys=shop,price")  # fmt: skip

    summary = json.loads((home / "run" / "summary.json").read_text())
    print(f"\ntest AUC {summary['test']['auc']:.3f}")
    print(pl.read_csv(home / "p.csv").head(5))
    print(f"all files are in {home}")


if __name__ == "__main__":
    main()
