"""Who gets which rank: the protocol of rules, and their registry."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.registry import Registry

Shapes = Mapping[str, tuple[int, int]]
Ranks = dict[str, int | None]
"""By path; None where a matrix stays dense, as factors would have no fewer numbers. Of channels how
many are left; None where all are."""


class Channels(NamedTuple):
    """Channels from layers to a layer, which are dropped in all of them.

    Attributes:
        total: how many there are.
        price: how many numbers one takes, in all of those layers.
    """

    total: int
    price: int


class Parts(NamedTuple):
    """What ranks are chosen for.

    Attributes:
        shapes: (m, n) of the matrices that become factors, by path.
        spectra: their singular values in units of the loss, where the rule needs them, and what
            channels are worth (see `lpaf_jax.linalg.channel_choices`).
        channels: those whose layers are not among the shapes, by the path of the layer that takes
            them.
    """

    shapes: Shapes
    spectra: Mapping[str, np.ndarray]
    channels: Mapping[str, Channels]


class Limits(NamedTuple):
    """What ranks have to keep to.

    Attributes:
        share: of all numbers, that may be kept.
        multiple_of: step of ranks that differ, and of channels.
        least: share of its own numbers that a part keeps where ranks differ.
    """

    share: float
    multiple_of: int = 1
    least: float = 0.0


@dataclass(frozen=True)
class RankRule:
    """A rule by which ranks are chosen.

    Attributes:
        name: by which it is registered.
        summary: what it does, on one line.
        choose: `(parts, limits) -> ranks`.
        needs_spectra: whether it needs the singular values in units of the loss.
        measured: whether those are scaled by what each cut alone does to a model's answers.
        whole: which matrices stay whole by their place, as a sentence; empty where those do that
            are worth it.
        cut: what the others are called then.
        factorizes: whether any matrix becomes factors; else channels alone go.
        check: `(paths)` of the layers: raises LpafError where it has no answer for one of them.
    """

    name: str
    summary: str
    choose: Callable[[Parts, Limits], Ranks]
    needs_spectra: bool = False
    measured: bool = False
    whole: str = ""
    cut: str = ""
    factorizes: bool = True
    check: Callable[[Iterable[str]], None] = lambda paths: None


RANK_RULES: Registry[RankRule] = Registry("rank rule", RankRule)


def register_rank_rule(rule: RankRule) -> RankRule:
    """Let recipes use a rank rule by its name."""
    return RANK_RULES.register(rule)


def share_of(channels: Mapping[str, Channels], limits: Limits) -> Ranks:
    """The same share of the channels of each."""
    found: Ranks = {}
    for path, (total, _) in channels.items():
        left = max(1, int(limits.share * total * (1 + 1e-12)))  # a whole number stays one
        if left >= limits.multiple_of:
            left = left // limits.multiple_of * limits.multiple_of
        found[path] = None if left >= total else left
    return found


def choose_ranks(
    rule: str,
    shapes: Shapes,
    *,
    params: float | None,
    rank: int | None = None,
    spectra: Mapping[str, np.ndarray] | None = None,
    channels: Mapping[str, Channels] | None = None,
    multiple_of: int = 1,
    least: float = 0.0,
) -> Ranks:
    """The rank of every matrix, and how many channels are left.

    Args:
        rule: one of `RANK_RULES`.
        shapes: (m, n) by path.
        params: share of the numbers that may be kept; or `rank`, the same everywhere.
        spectra: by path, for rules that need them; see `loss_spectrum`.
        channels: see `Parts`.
        multiple_of, least: see `Limits`.

    Raises:
        LpafError: the rule is unknown, or the share pays for no rank at all.
        SettingError: a rank is given to a rule that shares ranks out.
    """
    chosen = RANK_RULES[rule]
    if rank is not None:
        if rule != "uniform":
            raise SettingError(
                ("rank",), f"sets one rank for all matrices, but --ranks {rule} gives each its own"
            )
        if channels:
            raise SettingError(("rank",), "does not set the number of channels")
        return dict.fromkeys(shapes, rank)
    assert params is not None
    parts = Parts(shapes, spectra or {}, channels or {})
    try:
        return chosen.choose(parts, Limits(params, multiple_of, least))
    except ValueError as error:
        raise LpafError(f"cannot keep {params:.2%} of the compressible weights: {error}") from None
