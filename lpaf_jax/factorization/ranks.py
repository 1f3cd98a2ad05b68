"""Who gets which rank: rules that share a budget out over the matrices of a model."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.registry import Registry
from lpaf_jax.importance import Weighting
from lpaf_jax.linalg import allocate_ranks, rank_for_ratio
from lpaf_jax.linalg.scaling import exponent, from_unit, shift, to_unit

Shapes = Mapping[str, tuple[int, int]]
Ranks = dict[str, int | None]
"""By path; None where a matrix stays dense, as factors would have no fewer numbers."""


@dataclass(frozen=True)
class RankRule:
    """A rule by which ranks are chosen.

    Attributes:
        name: by which it is registered.
        summary: what it does, on one line.
        choose: `(shapes, share, spectra, multiple_of) -> ranks`: the share of the numbers that may
            be kept, and the singular values in units of the loss where the rule needs them.
        needs_spectra: whether it does.
    """

    name: str
    summary: str
    choose: Callable[[Shapes, float, Mapping[str, np.ndarray], int], Ranks]
    needs_spectra: bool = False


RANK_RULES: Registry[RankRule] = Registry("rank rule")


def register_rank_rule(rule: RankRule) -> RankRule:
    """Let recipes use a rank rule by its name."""
    return RANK_RULES.add(rule.name, rule)


def choose_ranks(
    rule: str,
    shapes: Shapes,
    *,
    params: float | None,
    rank: int | None = None,
    spectra: Mapping[str, np.ndarray] | None = None,
    multiple_of: int = 1,
) -> Ranks:
    """The rank of every matrix.

    Args:
        rule: one of `RANK_RULES`.
        shapes: (m, n) by path.
        params: share of the numbers that may be kept; or `rank`, the same everywhere.
        spectra: by path, for rules that need them; see `loss_spectrum`.
        multiple_of: step of ranks that differ.

    Raises:
        LpafError: the rule is unknown, or the share pays for no rank at all.
        SettingError: a rank is given to a rule that shares ranks out.
    """
    chosen = RANK_RULES[rule]
    if rank is not None:
        if rule != "uniform":
            raise SettingError(("rank",), f"is one for all, which --ranks {rule} is not")
        return dict.fromkeys(shapes, rank)
    assert params is not None
    try:
        return chosen.choose(shapes, params, spectra or {}, multiple_of)
    except ValueError as error:
        raise LpafError(
            f"{params:.2%} of the compressible weights cannot be kept: {error}"
        ) from None


def _uniform(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
    return dict.fromkeys(shapes, rank_for_ratio(list(shapes.values()), share))


def _share(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
    found: Ranks = {}
    for path, (m, n) in shapes.items():
        rank = max(1, int(share * m * n / (m + n)))
        if rank >= multiple_of:  # a step that the share does not pay for is no step
            rank = rank // multiple_of * multiple_of
        found[path] = None if rank * (m + n) >= m * n else rank
    return found


def _by_loss(
    shapes: Shapes, share: float, spectra: Mapping[str, np.ndarray], multiple_of: int
) -> Ranks:
    """Ranks by `allocate_ranks`; a matrix that factors would not make smaller stays dense.

    What that saves goes to the others, until no further matrix stays dense.
    """
    ranks: Ranks = {}
    budget = int(share * sum(m * n for m, n in shapes.values()))
    while len(ranks) < len(shapes):
        rest = [path for path in shapes if path not in ranks]
        found = allocate_ranks(
            [spectra[p] for p in rest], [shapes[p] for p in rest], budget, multiple_of
        )
        given = dict(zip(rest, found, strict=True))
        dense = [p for p in rest if given[p] * sum(shapes[p]) >= math.prod(shapes[p])]
        if not dense:
            ranks |= given
            break
        ranks |= dict.fromkeys(dense)
        budget -= sum(math.prod(shapes[path]) for path in dense)
    return {path: ranks[path] for path in shapes}


register_rank_rule(RankRule("uniform", "one rank for all matrices", _uniform))
register_rank_rule(RankRule("share", "the same share of the numbers of each matrix", _share))
register_rank_rule(
    RankRule(
        "loss",
        "ranks go where the loss depends on them most, by the metric of two sides",
        _by_loss,
        needs_spectra=True,
    )
)


def loss_spectrum(w: Array, weighting: Weighting) -> np.ndarray:
    """Singular values of `L^½ W R^½`, in falling order.

    With `L = E[xᵀx]` and `R = E[gᵀg]`, `½ Σ_{j>k} s_j²` is about what the loss rises by where the
    matrix is cut to rank k. So they are in one unit for all matrices of a model: normalised for
    each, they would say nothing of how much a matrix matters.

    Args:
        w: (m, n). weighting: its `left` and `right`, vectors or matrices; None is the identity.

    Cost: an eigendecomposition of each metric, and the singular values of W.
    """
    found = np.asarray(_spectrum(w, weighting.left, weighting.right), np.float64)
    return np.maximum.accumulate(np.maximum(found, 0)[::-1])[::-1]


@jax.jit
def _spectrum(w: Array, left: Array | None, right: Array | None) -> Array:
    unit = exponent(w)
    rooted = to_unit(w, unit)
    for metric, turned in ((left, False), (right, True)):
        if metric is None:
            continue
        of_metric = exponent(metric)
        # An even power of two, whose root is one, too.
        of_metric = (of_metric >> 1) << 1
        root = _root(to_unit(metric, of_metric))
        unit = unit + (of_metric >> 1)
        rooted = _applied(root, rooted.T).T if turned else _applied(root, rooted)
    return from_unit(jnp.linalg.svd(rooted, compute_uv=False), unit)


def _root(metric: Array) -> Array:
    """T with TᵀT = M: a vector of roots, or `√S Qᵀ` of M with its diagonal near 1, scaled back.

    Scaled, a massive channel does not hide in its rounding what the others hold.
    """
    if metric.ndim == 1:
        return jnp.sqrt(jnp.maximum(metric, 0))
    e = exponent(jnp.diagonal(metric)[:, None], axis=1)[:, 0] >> 1
    scaled = shift(shift(metric, -e[:, None]), -e[None, :])
    values, vectors = jnp.linalg.eigh((scaled + scaled.T) / 2)
    return shift(jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T, e[None, :])


def _applied(root: Array, x: Array) -> Array:
    return root[:, None] * x if root.ndim == 1 else root @ x
