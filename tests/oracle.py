"""DLRM training stated in float64 NumPy, one sample and one id at a time.

The JAX implementation is compared with this file, so it favours being checkable by eye over speed.
The batch here is the whole global batch: accumulating over micro-batches must give the same step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layers = list[tuple[Array, Array]]
"""An MLP: (W [out, in], b [out]) from input to output."""

ABSENT = -1
LOWEST_DECAYED_RATE = 1e-7
BETA1, BETA2 = 0.9, 0.999


@dataclass
class OracleTable:
    """An embedding table; `eps=None` means the optimizer's default."""

    name: str
    weights: Array  # [rows, dim]
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    eps: float | None = None
    trainable: bool = True


@dataclass
class OracleLookup:
    """One pooled vector a sample: the bags of `feature`, read from `table`."""

    name: str
    feature: str
    table: str
    pooling: str = "sum"  # or "mean"


@dataclass
class Gradients:
    """Derivatives of the batch loss; a table has entries for the rows present in the batch only."""

    bottom: Layers
    top: Layers
    tables: dict[str, dict[int, Array]]  # trainable tables: row -> [dim]


class Oracle:
    """A DLRM and its optimizers. `step` changes the weights and optimizer slots in place."""

    def __init__(
        self,
        tables: list[OracleTable],
        lookups: list[OracleLookup],
        bottom: Layers,
        top: Layers,
        *,
        interaction: str = "dot",
        self_interaction: bool = False,
        loss: str = "bce",
        class_weights: tuple[float, float] = (1.0, 1.0),
        dense_optimizer: str = "sgd",
        dense_learning_rate: float = 0.1,
        dense_eps: float | None = None,
        warmup: int = 0,
        decay_start: int = 0,
        decay_steps: int = 0,
        clip_norm: float | None = None,
        table_l2: float = 0.0,
        whole_tables: bool = False,
        dense_l2: float = 0.0,
        label_weights: tuple[float, ...] = (1.0,),
    ):
        assert interaction in ("dot", "cat"), interaction
        assert loss in ("bce", "mse"), loss
        assert all(lookup.pooling in ("sum", "mean") for lookup in lookups), lookups
        self.tables = {t.name: replace(t, weights=_copy(t.weights)) for t in tables}
        self.lookups = lookups
        self.bottom = [(_copy(W), _copy(b)) for W, b in bottom]
        self.top = [(_copy(W), _copy(b)) for W, b in top]
        self.interaction, self.self_interaction = interaction, self_interaction
        self.loss_name, self.class_weights = loss, class_weights
        self.dense_optimizer, self.dense_learning_rate = dense_optimizer, dense_learning_rate
        self.dense_eps = dense_eps
        self.warmup, self.decay_start, self.decay_steps = warmup, decay_start, decay_steps
        self.clip_norm = clip_norm
        self.table_l2, self.whole_tables, self.dense_l2 = table_l2, whole_tables, dense_l2
        self.label_weights = label_weights
        self.step_count = 0  # steps taken so far
        self.slots: dict[str, dict[str, Array]] = {name: {} for name in self.tables}
        for t in self.tables.values():
            if t.trainable:
                self.slots[t.name] = new_slots(t.optimizer, t.weights)
        # One entry for W and one for b of each bottom layer, then of each top layer.
        self.dense_slots = [new_slots(dense_optimizer, p) for p in _flat(self.bottom + self.top)]

    def forward(self, dense, ids, id_weights=None) -> Array:
        """Returns the logits, [B], or [B, H] of several labels.

        dense [B, F], ids and id_weights {feature: [B, L]}.
        """
        each = [self._sample(dense, ids, id_weights, i).logits for i in range(len(dense))]
        return np.array(each) if len(self.label_weights) > 1 else np.array(each)[:, 0]

    def gradients(
        self, dense, ids, labels, id_weights=None, sample_weights=None
    ) -> tuple[float, Gradients]:
        """Returns the batch loss sum(s·ℓ) / sum(s) and its derivatives, before clipping.

        Of several labels, [B, H], it is the sum over labels of their weight times that over the
        samples that have them; of a label without any, 0.
        """
        H = len(self.label_weights)
        assert np.shape(labels) == ((len(dense),) if H == 1 else (len(dense), H)), np.shape(labels)
        labels = np.reshape(labels, (len(dense), H))
        shares = np.zeros((len(dense), H))
        for h, label_weight in enumerate(self.label_weights):
            has = ~np.isnan(labels[:, h])
            if has.any():
                given = None if sample_weights is None else np.asarray(sample_weights)[has]
                shares[has, h] = label_weight * _shares(has.sum(), given)
        total = Gradients(
            bottom=[(np.zeros_like(W), np.zeros_like(b)) for W, b in self.bottom],
            top=[(np.zeros_like(W), np.zeros_like(b)) for W, b in self.top],
            tables={t.name: {} for t in self.tables.values() if t.trainable},
        )
        batch_loss = 0.0
        for i in range(len(dense)):
            sample = self._sample(dense, ids, id_weights, i)
            d_logits = np.zeros(H)
            for h in range(H):
                if not np.isnan(labels[i, h]):
                    loss, slope = self._sample_loss(sample.logits[h], float(labels[i, h]))
                    batch_loss += shares[i, h] * loss
                    d_logits[h] = shares[i, h] * slope
            d_z = _mlp_backward(self.top, sample.top_inputs, d_logits, total.top)
            d_vectors = self._interact_backward(sample.vectors, d_z)

            d_x = d_vectors[0] * (sample.vectors[0] > 0)  # the last bottom layer has a ReLU too
            _mlp_backward(self.bottom, sample.bottom_inputs, d_x, total.bottom)
            for lookup, bag, d_pooled in zip(self.lookups, sample.bags, d_vectors[1:], strict=True):
                if self.tables[lookup.table].trainable:
                    rows = total.tables[lookup.table]
                    for row, factor in bag:
                        rows[row] = rows.get(row, 0.0) + factor * d_pooled
        return float(batch_loss), total

    def step(self, dense, ids, labels, id_weights=None, sample_weights=None) -> float:
        """Updates everything trainable; returns the loss before the update."""
        loss, gradients = self.gradients(dense, ids, labels, id_weights, sample_weights)
        self.step_count += 1
        self._penalize(gradients)
        norm = global_norm(gradients)
        clip = 1.0 if self.clip_norm is None or norm <= self.clip_norm else self.clip_norm / norm

        parameters = _flat(self.bottom + self.top)
        slopes = _flat(gradients.bottom + gradients.top)
        rate = self.rate(self.dense_learning_rate, self.step_count)
        formula = FORMULAS[self.dense_optimizer]
        eps = formula.eps if self.dense_eps is None else self.dense_eps
        for w, g, slots in zip(parameters, slopes, self.dense_slots, strict=True):
            formula.update(w, slots, ..., clip * g, rate, eps, self.step_count)

        for name, rows in gradients.tables.items():
            t, slots = self.tables[name], self.slots[name]
            rate = self.rate(t.learning_rate, self.step_count)
            formula = FORMULAS[t.optimizer]
            eps = formula.eps if t.eps is None else t.eps
            for row, g in rows.items():
                formula.update(t.weights, slots, row, clip * g, rate, eps, self.step_count)
        return loss

    def _penalize(self, gradients: Gradients) -> None:
        """Adds λ·w, the derivative of λ/2·Σw²: to the rows present in the batch, or to all."""
        parameters, slopes = self.bottom + self.top, gradients.bottom + gradients.top
        for w, g in zip(_flat(parameters), _flat(slopes), strict=True):
            g += self.dense_l2 * w
        if not self.table_l2:
            return
        for name, rows in gradients.tables.items():
            w = self.tables[name].weights
            for row in range(len(w)) if self.whole_tables else list(rows):
                rows[row] = rows.get(row, 0.0) + self.table_l2 * w[row]

    def rate(self, base: float, s: int) -> float:
        """Learning rate of step s, counted from 1.

        With warm-up W and decay from S0 for N steps: base·s/W while s < W; then base up to and
        including S0; then max(base·((N-(s-S0))/N)², 1e-7) while s < S0+N, and from then on the
        last of these. Without decay (N = 0) it stays base. The floor applies to the rate.
        """
        if s < self.warmup:
            return base * s / self.warmup
        if self.decay_steps == 0 or s <= self.decay_start:
            return base
        left = max(self.decay_steps - (s - self.decay_start), 1)
        return max(base * (left / self.decay_steps) ** 2, LOWEST_DECAYED_RATE)

    def _sample(self, dense, ids, id_weights, i: int) -> "_Sample":
        bottom_inputs = _mlp_forward(self.bottom, np.asarray(dense[i], np.float64), last_relu=True)
        vectors, bags = [bottom_inputs.pop()], []
        for lookup in self.lookups:
            table, bag_ids = self.tables[lookup.table].weights, ids[lookup.feature][i]
            weights = (id_weights or {}).get(lookup.feature)
            bag_weights = np.ones(len(bag_ids)) if weights is None else weights[i]
            bag = _bag(lookup.pooling, bag_ids, bag_weights, len(table))
            pooled = np.zeros(table.shape[1])
            for row, factor in bag:
                pooled = pooled + factor * table[row]
            bags.append(bag)
            vectors.append(pooled)
        top_inputs = _mlp_forward(self.top, self._interact(vectors), last_relu=False)
        return _Sample(bottom_inputs, bags, vectors, top_inputs, logits=top_inputs.pop())

    def _pairs(self, F: int) -> list[tuple[int, int]]:
        """Row-major lower triangle of an F×F matrix."""
        return [(i, j) for i in range(F) for j in range(i + 1 if self.self_interaction else i)]

    def _interact(self, vectors: list[Array]) -> Array:
        if self.interaction == "cat":
            return np.concatenate(vectors)
        dots = [np.dot(vectors[i], vectors[j]) for i, j in self._pairs(len(vectors))]
        return np.concatenate([vectors[0], np.array(dots)])

    def _interact_backward(self, vectors: list[Array], d_z: Array) -> list[Array]:
        if self.interaction == "cat":
            ends = np.cumsum([len(v) for v in vectors])
            return [d_z[end - len(v) : end] for v, end in zip(vectors, ends, strict=True)]
        d = len(vectors[0])
        d_vectors = [d_z[:d].copy()] + [np.zeros(d) for _ in vectors[1:]]
        for (i, j), d_dot in zip(self._pairs(len(vectors)), d_z[d:], strict=True):
            d_vectors[i] += d_dot * vectors[j]
            d_vectors[j] += d_dot * vectors[i]  # for i = j this makes 2·v, as it should
        return d_vectors

    def _sample_loss(self, logit: float, label: float) -> tuple[float, float]:
        """Returns ℓ and dℓ/dlogit of one sample, class weight included."""
        assert label in (0, 1), label
        class_weight = self.class_weights[int(label)]
        p = np.exp(-np.logaddexp(0.0, -logit))  # sigmoid
        if self.loss_name == "bce":
            loss, slope = np.logaddexp(0.0, logit) - label * logit, p - label
        else:
            loss, slope = (p - label) ** 2, 2 * (p - label) * p * (1 - p)
        return float(class_weight * loss), float(class_weight * slope)


@dataclass
class _Sample:
    bottom_inputs: list[Array]  # the input of each bottom layer
    bags: list[list[tuple[int, float]]]  # a lookup: (row, factor) of each present id
    vectors: list[Array]  # x, e_1, …, e_n
    top_inputs: list[Array]  # the input of each top layer
    logits: Array  # [H]


def global_norm(gradients: Gradients) -> float:
    """Euclidean norm of all MLP gradients and all row gradients together."""
    arrays = _flat(gradients.bottom + gradients.top)
    arrays += [g for rows in gradients.tables.values() for g in rows.values()]
    return float(np.sqrt(sum(np.sum(g**2) for g in arrays)))


def _bag(pooling: str, ids, weights, n_rows: int) -> list[tuple[int, float]]:
    """(row, factor) of each present id, such that pooled = Σ factor·table[row]."""
    present = [(int(r), float(w)) for r, w in zip(ids, weights, strict=True) if r != ABSENT]
    assert all(0 <= row < n_rows for row, _ in present), (ids, n_rows)
    if pooling == "sum":
        return present
    total = sum(w for _, w in present)
    return [(row, w / total if total != 0 else 0.0) for row, w in present]


def _mlp_forward(layers: Layers, x: Array, *, last_relu: bool) -> list[Array]:
    """Returns the input of each layer, and last the output of the MLP."""
    values = [x]
    for k, (W, b) in enumerate(layers):
        y = W @ values[-1] + b
        values.append(np.maximum(y, 0.0) if last_relu or k < len(layers) - 1 else y)
    return values


def _mlp_backward(layers: Layers, inputs: list[Array], d_y: Array, total: Layers) -> Array:
    """Adds each layer's derivatives to total; d_y is that of the last Linear's output."""
    d_x = d_y
    for k in reversed(range(len(layers))):
        d_W, d_b = total[k]
        d_W += np.outer(d_y, inputs[k])
        d_b += d_y
        d_x = layers[k][0].T @ d_y
        d_y = d_x * (inputs[k] > 0)  # the ReLU before layer k; unused for k = 0
    return d_x


# Optimizers: one step on w[at], a row, or everything when at is `...`; t counts from 1.


def _sgd(w: Array, slots: dict[str, Array], at, g: Array, rate, eps, t) -> None:
    w[at] -= rate * g


def _adagrad(w: Array, slots: dict[str, Array], at, g: Array, rate, eps, t) -> None:
    slots["accumulator"][at] += g**2
    w[at] -= rate * g / (np.sqrt(slots["accumulator"][at]) + eps)


def _rowwise_adagrad(w: Array, slots: dict[str, Array], at, g: Array, rate, eps, t) -> None:
    slots["accumulator"][at] += np.mean(g**2)
    w[at] -= rate * g / (np.sqrt(slots["accumulator"][at]) + eps)


def _adam(w: Array, slots: dict[str, Array], at, g: Array, rate, eps, t) -> None:
    slots["mean"][at] = BETA1 * slots["mean"][at] + (1 - BETA1) * g
    slots["variance"][at] = BETA2 * slots["variance"][at] + (1 - BETA2) * g**2
    mean = slots["mean"][at] / (1 - BETA1**t)
    variance = slots["variance"][at] / (1 - BETA2**t)
    w[at] -= rate * mean / (np.sqrt(variance) + eps)


class Formula(NamedTuple):
    """An optimizer: its update, the default of eps, and its slots, which start at 0."""

    update: Callable[..., None]
    eps: float = 0.0
    elements: tuple[str, ...] = ()  # slots of one number an element
    rows: tuple[str, ...] = ()  # slots of one number a row


FORMULAS = {
    "sgd": Formula(_sgd),
    "adagrad": Formula(_adagrad, 1e-10, elements=("accumulator",)),
    "rowwise_adagrad": Formula(_rowwise_adagrad, 1e-10, rows=("accumulator",)),
    "adam": Formula(_adam, 1e-8, elements=("mean", "variance")),
}


def new_slots(optimizer: str, w: Array) -> dict[str, Array]:
    formula = FORMULAS[optimizer]
    slots = {name: np.zeros_like(w) for name in formula.elements}
    return slots | {name: np.zeros(len(w)) for name in formula.rows}


def _shares(B: int, sample_weights) -> Array:
    """Each sample's part s / sum(s) of the batch loss, [B]."""
    weights = np.ones(B) if sample_weights is None else np.array(sample_weights, np.float64)
    assert weights.shape == (B,), weights.shape
    assert weights.sum() > 0, weights
    return weights / weights.sum()


def _flat(layers: Layers) -> list[Array]:
    return [parameter for layer in layers for parameter in layer]


def _copy(a) -> Array:
    return np.array(a, np.float64)
