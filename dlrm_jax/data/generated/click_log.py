"""A generated log of impressions as a click-rate team has it, with known click probabilities.

Users with tastes are shown five items at a time; some of them they have clicked on before. They
click on famous items, on those of their taste, and on those that are in their history or like it;
some clicks become purchases. Each day some items are new and as many are gone, so that later days
have values which earlier ones lack.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from dlrm_jax.data.generated.teacher import check_ranges

SCHEMA = {
    "label": "clicked",
    "timestamp": "time",
    "dense": ["price"],
    "categorical": ["user_id", "item_id", "category", "device", "position", "last_viewed"],
    "bag_lengths": {"last_viewed": 8},
    "shared": {"last_viewed": "item_id"},
    "groups": ["request_id"],
}
"""The schema of the log, as `preprocess` reads it."""

LABELS = ["clicked", "purchased"]
"""The labels of a schema of both; a purchase needs a click."""

_FIRST_DAY = datetime.datetime(2026, 1, 1)
_SHOWN = 5  # items of a request
_SEEN = 0.3  # share of them that the user has clicked on before
_HISTORY = SCHEMA["bag_lengths"]["last_viewed"]
_FACTORS = 4
_CATEGORIES = 20
_DEVICES = ("phone", "tablet", "desktop")
# Standard deviations of the terms of a click's log odds, and what they are added to. The history
# is worth some hundredths of AUC.
_FAME, _TASTE, _LIKENESS, _AGAIN, _DEVICE, _PRICE = 0.7, 0.8, 0.4, 2.0, 0.3, 0.3
_CLICK_BIAS, _POSITION_BIAS, _PURCHASE_BIAS = -2.0, -0.15, -1.5
_COLUMNS = (
    "second", "request", "user", "item", "category", "log_price", "position", "clicked", "purchased"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Impressions:
    """N impressions and the causes of their labels.

    Attributes:
        frame: columns of the log, and ``click_probability``, that of ``clicked``.
        users: number of each row's user.
        click: log odds of a click.
        without_history: the same without the term of the history.
        purchase: log odds of a purchase after a click.
    """

    frame: pl.DataFrame
    users: Int64[np.ndarray, " N"]
    click: Float64[np.ndarray, " N"]
    without_history: Float64[np.ndarray, " N"]
    purchase: Float64[np.ndarray, " N"]


class ClickLog:
    """Users, items and their tastes; the days of their impressions.

    Args:
        users: number of users.
        items: number of items at a time.
        drift: share of the items that are new on each day.
        days: number of days.
        seed: seed of everything.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(self, users: int, items: int, drift: float, days: int, seed: int):
        check_ranges(
            ("users", users, 10, 2**31 - 1),
            ("items", items, 2 * _SHOWN, 2**31 - 1),
            ("drift", drift, 0, 1),
            ("days", days, 1, 2**31 - 1),
            ("seed", seed, 0, 2**63 - 1),
        )
        self._rng = rng = np.random.default_rng([seed, 3])
        self._items, self._new, self._days = items, round(drift * items), days
        every = items + self._new * (days - 1)
        self._activity = _shares(rng.exponential(size=users) ** 2)
        self._taste = rng.standard_normal((users, _FACTORS))
        self._spends = rng.standard_normal(users)
        self._device = rng.integers(0, len(_DEVICES), users)
        self._quality = rng.standard_normal((every, _FACTORS))
        self._style = rng.standard_normal((every, _FACTORS))
        self._fame = rng.standard_normal(every)
        self._log_price = rng.standard_normal(every)
        clusters = rng.standard_normal((_FACTORS, _CATEGORIES))
        self._category = np.argmax(self._style @ clusters, axis=1)
        self._on_device = rng.standard_normal((len(_DEVICES), _CATEGORIES))
        self._history = np.full((users, _HISTORY), -1)  # the latest first

    def each_day(self, examples: int) -> Iterator[Impressions]:
        """Yields the impressions of each day, in the order of time.

        Args:
            examples: number of impressions of a day, rounded up to whole requests of five.
        """
        for day in range(self._days):
            requests = -(-examples // _SHOWN)
            # Users are different within a round, as a request must know all earlier clicks.
            size = min(-(-requests // 100), len(self._taste) // 10)
            starts = range(0, requests, size)
            parts = [
                self._round(day, start, min(size, requests - start), requests) for start in starts
            ]
            found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            yield _impressions(found, day)

    def _with_seen(
        self, items: Int64[np.ndarray, "n s"], history: Int64[np.ndarray, "n h"], oldest: int
    ) -> Int64[np.ndarray, "n s"]:
        """Items to show, some of which are replaced by ones of the user's history."""
        size, shown = items.shape
        chosen = self._rng.integers(0, np.maximum((history >= 0).sum(1), 1), (shown, size)).T
        seen = np.take_along_axis(history, chosen, axis=1)
        replaced = (self._rng.random(items.shape) < _SEEN) & (seen >= oldest)
        return np.where(replaced, seen, items)

    def _round(self, day: int, first: int, size: int, requests: int) -> dict[str, np.ndarray]:
        """A request of each of ``size`` users, [size · 5] impressions.

        The first of them is request number ``first`` of so many on that day.
        """
        rng = self._rng
        users = rng.choice(len(self._taste), size, replace=False, p=self._activity)
        alive = day * self._new + np.arange(self._items)
        exposure = _shares(np.exp(self._fame[alive]))
        history = self._history[users]
        famous = rng.choice(alive, (size, _SHOWN), p=exposure)
        items = self._with_seen(famous, history, int(alive[0]))
        # [size, 5, history]
        likeness = np.einsum("nsf,nhf->nsh", self._style[items], self._style[history])
        known = history >= 0
        likeness = (
            np.where(known[:, None], likeness, 0).sum(2) / np.maximum(known.sum(1), 1)[:, None]
        )
        taste = np.einsum("nf,nsf->ns", self._taste[users], self._quality[items])
        device, category = self._device[users], self._category[items]
        without = (
            _CLICK_BIAS
            + _POSITION_BIAS * np.arange(_SHOWN)
            + _FAME * self._fame[items]
            + _TASTE * taste / np.sqrt(_FACTORS)
            + _DEVICE * self._on_device[device[:, None], category]
            - _PRICE * self._log_price[items]
        )
        again = (items[:, :, None] == history[:, None]).any(2)
        click = without + _LIKENESS * likeness / np.sqrt(_FACTORS) + _AGAIN * again
        spends = self._spends[users][:, None] - self._log_price[items]
        purchase = _PURCHASE_BIAS + 0.7 * spends + 0.5 * taste / np.sqrt(_FACTORS)
        clicked = rng.random(click.shape) < _sigmoid(click)
        purchased = clicked & (rng.random(click.shape) < _sigmoid(purchase))
        for position in range(_SHOWN):
            new = clicked[:, position]
            mine = self._history[users[new]]
            self._history[users[new]] = np.concatenate(
                [items[new, position, None], mine[:, :-1]], axis=1
            )
        seconds = (first + size * np.sort(rng.random(size))) * 86_400 / requests
        of_request = {
            "second": seconds.astype(np.int64),
            "request": first + np.arange(size),
            "user": users,
            "device": device,
        }
        shown = {
            "item": items,
            "category": category,
            "log_price": self._log_price[items],
            "position": np.broadcast_to(np.arange(_SHOWN), items.shape),
            "clicked": clicked,
            "purchased": purchased,
            "click": click,
            "without": without,
            "purchase": purchase,
        }
        repeated = {name: np.repeat(x, _SHOWN) for name, x in of_request.items()}
        flat = {name: x.reshape(-1) for name, x in shown.items()}
        return repeated | flat | {"history": np.repeat(history, _SHOWN, axis=0)}


def _impressions(found: dict[str, np.ndarray], day: int) -> Impressions:
    start = _FIRST_DAY + datetime.timedelta(days=day)
    items = pl.element().filter(pl.element() >= 0)
    frame = pl.DataFrame({name: found[name] for name in (*_COLUMNS, "history")}).select(
        time=pl.lit(start) + pl.duration(seconds="second"),
        request_id=pl.format("d{}r{}", pl.lit(day), "request"),
        user_id=pl.format("u{}", "user"),
        device=pl.Series(np.array(_DEVICES)[found["device"]]),
        item_id=pl.format("i{}", "item"),
        category=pl.format("c{}", "category"),
        price=(3 + pl.col("log_price")).exp().round(2),
        position="position",
        last_viewed=pl.col("history").arr.to_list().list.eval(pl.format("i{}", items)),
        clicked="clicked",
        purchased="purchased",
        click_probability=pl.Series(_sigmoid(found["click"])),
    )
    return Impressions(frame, found["user"], found["click"], found["without"], found["purchase"])


def _shares(weights: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return weights / weights.sum()


def _sigmoid(x: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return 1 / (1 + np.exp(-x))
