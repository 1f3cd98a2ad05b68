"""Where a text belongs is decided by the text alone."""

import hashlib
from collections.abc import Sequence

import numpy as np

from lpaf_jax.data.examples import Examples


def normalise(text: str) -> str:
    """The text in lower case with single spaces: what counts as the same text."""
    return " ".join(text.casefold().split())


def position(text: str, pair: str | None = None) -> float:
    """A number in [0, 1) that is a pure function of the normalised text.

    It does not depend on the order of a file, on the other rows, on the seed or on the platform:
    a text keeps its split when the data set grows, and equal texts share a split.
    """
    key = normalise(text) if pair is None else f"{normalise(text)}\t{normalise(pair)}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def positions(examples: Examples) -> np.ndarray:
    """`position` of every example, (n,) float64."""
    pairs: Sequence[str | None] = examples.pairs or [None] * len(examples)
    both = zip(examples.texts, pairs, strict=True)
    return np.array([position(text, pair) for text, pair in both], dtype=np.float64)


def hash_split(
    examples: Examples, shares: Sequence[float], places: np.ndarray | None = None
) -> list[Examples]:
    """Cut the examples by hash into parts of about the given shares (which sum to 1).

    The original order is kept inside each part. Sizes vary around n * share as a binomial does.

    Args:
        examples: what is cut.
        shares: of the parts.
        places: (n,) in [0, 1), where examples that belong together share a place; `positions`
            unless given.
    """
    edges = np.cumsum(shares)[:-1]
    part = np.searchsorted(edges, positions(examples) if places is None else places, side="right")
    return [examples.take(np.flatnonzero(part == i)) for i in range(len(shares))]


def hash_sample(examples: Examples, count: int) -> Examples:
    """`count` examples drawn by hash, in their original order; a larger count adds to a smaller."""
    drawn = np.argsort(positions(examples), kind="stable")[:count]
    return examples.take(np.sort(drawn))


def drop_repeats(examples: Examples) -> Examples:
    """Keep the first of equal texts; of equal texts with contradicting labels keep none.

    Examples of two texts are equal if both are. Labels are classes.
    """
    pairs: Sequence[str | None] = examples.pairs or [None] * len(examples)
    first: dict[tuple[str, str | None], int] = {}
    contradicted: set[tuple[str, str | None]] = set()
    for i, (text, pair) in enumerate(zip(examples.texts, pairs, strict=True)):
        key = (normalise(text), None if pair is None else normalise(pair))
        if examples.labels[first.setdefault(key, i)] != examples.labels[i]:
            contradicted.add(key)
    kept = [i for key, i in first.items() if key not in contradicted]
    return examples.take(np.array(kept, dtype=np.int64))


def evenly(total: int, count: int) -> np.ndarray:
    """`count` places of `total` at even distances, the first and the last among them."""
    places: np.ndarray = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return np.unique(places)


def held_out(total: int, most: int) -> int:
    """How many pieces at the end are held out: a tenth, at least one, and of one none."""
    return min(most, max(min(total - 1, 1), total // 10))
