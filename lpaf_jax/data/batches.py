"""Batches of a few fixed shapes: every new shape is a compilation."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from lpaf_jax.data.tokenize import Encoded

Batch = dict[str, np.ndarray]

# Up to 64 these are the four multiples of 8 that pad the sentences of Rotten Tomatoes least (34.5
# tokens a row where the texts have 27.4; all four occur in every epoch).
BUCKETS = (24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# Batches' worth of examples that are sorted by length together: enough that neighbours are of
# nearly equal length, few enough that the batches of an epoch differ from the next one's.
POOL = 50


class Batches(Sequence[Batch]):
    """The batches of one pass, each built when it is asked for.

    A batch is a dict of numpy arrays: `input_ids`, `attention_mask`, `token_type_ids` (B, L) int32,
    `labels` (B, ...) of the encoded data's type and `weight` (B,) float32, which is 0 on rows that
    only fill the batch up (always the last rows of a batch) and 1 elsewhere. Slicing
    (`batches[start:]`) continues a pass anywhere without building what came before.

    Attributes:
        rows: for each batch, the positions of its examples in the encoded data.
        lengths: for each batch, its padded length L.
    """

    def __init__(
        self, encoded: Encoded, rows: list[np.ndarray], batch_size: int, buckets: Sequence[int]
    ) -> None:
        self.rows = rows
        self.lengths = [
            bucket_length(max(len(encoded.ids[i]) for i in row), encoded.max_length, buckets)
            for row in rows
        ]
        self._encoded = encoded
        self._batch_size = batch_size
        self._buckets = buckets

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> "Batches": ...
    def __getitem__(self, index: int | slice) -> "Batch | Batches":
        if isinstance(index, slice):
            return Batches(self._encoded, self.rows[index], self._batch_size, self._buckets)
        return _build(self._encoded, self.rows[index], self._batch_size, self.lengths[index])

    def __iter__(self) -> Iterator[Batch]:
        return (self[i] for i in range(len(self)))

    def restore(self, outputs: np.ndarray) -> np.ndarray:
        """Put per-example outputs, stacked in the order of the batches, in the data's order.

        Args:
            outputs: (n, ...) one row for each example of weight 1, batch after batch.
        """
        order = np.concatenate(self.rows)
        restored = np.empty_like(outputs)
        restored[order] = outputs
        return restored


def bucket_length(longest: int, max_length: int, buckets: Sequence[int] = BUCKETS) -> int:
    """The smallest bucket that holds `longest` tokens; no bucket is longer than `max_length`."""
    return min((b for b in buckets if longest <= b < max_length), default=max_length)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """The number of training batches of `n` examples: whole ones, and at least one."""
    return max(1, n // batch_size)


def train_batches(
    encoded: Encoded,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    buckets: Sequence[int] = BUCKETS,
) -> Batches:
    """The shuffled batches of one epoch, a pure function of `(seed, epoch)` and the data.

    All examples are shuffled and cut into pools; each pool is sorted by length and cut into
    batches, and the batches of all pools are shuffled. An incomplete last batch is left out (other
    examples each epoch) unless there is no other: then its missing rows have weight 0.

    Args:
        encoded: n tokenized examples, n at least 1.
        batch_size: rows of every batch.
        seed: the run's seed.
        epoch: which pass over the data.
        buckets: padded lengths to choose from; see `bucket_length`.

    Raises:
        ValueError: no examples, or a batch size below 1.
    """
    _check(encoded, batch_size)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(encoded))
    kept = order[: steps_per_epoch(len(encoded), batch_size) * batch_size]
    lengths = np.array([len(ids) for ids in encoded.ids])
    rows: list[np.ndarray] = []
    for start in range(0, len(kept), POOL * batch_size):
        pool = kept[start : start + POOL * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        rows += _cut(pool, batch_size)
    shuffled = [rows[i] for i in random.permutation(len(rows))]
    return Batches(encoded, shuffled, batch_size, buckets)


def eval_batches(encoded: Encoded, batch_size: int, *, buckets: Sequence[int] = BUCKETS) -> Batches:
    """Batches that hold every example exactly once, **shortest first**, not in the data's order.

    `Batches.restore` puts outputs back in the data's order; `labels` of the batches are in the
    order of the batches. The last batch is filled up with rows of weight 0.

    Raises:
        ValueError: no examples, or a batch size below 1.
    """
    _check(encoded, batch_size)
    lengths = np.array([len(ids) for ids in encoded.ids])
    return Batches(
        encoded, _cut(np.argsort(lengths, kind="stable"), batch_size), batch_size, buckets
    )


def _check(encoded: Encoded, batch_size: int) -> None:
    if len(encoded) == 0 or batch_size < 1:
        raise ValueError(f"cannot split {len(encoded)} examples into batches of {batch_size}")


def _cut(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _build(encoded: Encoded, row: np.ndarray, batch_size: int, length: int) -> Batch:
    shape = (batch_size, length)
    input_ids = np.full(shape, encoded.pad_id, dtype=np.int32)
    mask = np.zeros(shape, dtype=np.int32)
    types = np.zeros(shape, dtype=np.int32)
    # Filling rows repeat the last example: a row without a single token to attend to gives NaN.
    filled = np.concatenate([row, np.repeat(row[-1:], batch_size - len(row))])
    for i, example in enumerate(filled):
        ids = encoded.ids[example]
        input_ids[i, : len(ids)] = ids
        mask[i, : len(ids)] = 1
        types[i, : len(ids)] = encoded.types[example]
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "token_type_ids": types,
        "labels": encoded.labels[filled],
        "weight": (np.arange(batch_size) < len(row)).astype(np.float32),
    }
