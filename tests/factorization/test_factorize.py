"""Factorizing many matrices is factorizing each."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factorization import factorize
from lpaf_jax.importance import IMPORTANCES, Subject, measure
from lpaf_jax.linalg import LowRank, svd, weighted_als, weighted_svd
from lpaf_jax.solvers import PRODUCT, SOLVERS

RANK, FLOOR = 2, 0.1
ALONE: dict[str, Callable[..., LowRank]] = {
    "row": lambda w, i: weighted_svd(w, i, RANK, sharing="row"),
    "column": lambda w, i: weighted_svd(w, i, RANK, sharing="column"),
    "separable": lambda w, i: weighted_svd(w, i, RANK, sharing="separable"),
    "elementwise": lambda w, i: weighted_als(w, i, RANK)[0],
    "plain": lambda w, i: svd(w, RANK),
}
Arrays = dict[str, jnp.ndarray]


def subject_of(weights: Arrays, scores: Arrays, masks: Arrays) -> Subject:
    """What pruning left, without a model: importances of scores look at nothing else."""
    nothing: Any = None
    return Subject(nothing, weights, scores, masks, {}, lambda count=None: iter(()), lambda *_: 0)


@pytest.fixture(scope="module")
def matrices() -> tuple[Arrays, Arrays, Arrays]:
    """W with zeros, S and M of five matrices in two shapes, interleaved."""
    rng = np.random.default_rng(0)
    weights, scores, masks = {}, {}, {}
    for i, shape in enumerate([(7, 5), (5, 7), (7, 5), (5, 7), (7, 5)]):
        mask = rng.random(shape) < 0.6
        weights[f"m{i}"] = jnp.asarray(rng.normal(size=shape) * mask, jnp.float32)
        # Uneven rows, so that a weighted solution is not the plain one.
        uneven = rng.lognormal(sigma=1.5, size=(shape[0], 1))
        scores[f"m{i}"] = jnp.asarray(rng.normal(size=shape) * uneven, jnp.float32)
        masks[f"m{i}"] = jnp.asarray(mask)
    return weights, scores, masks


@pytest.fixture(scope="module")
def weighting(matrices: tuple[Arrays, Arrays, Arrays]) -> Arrays:
    found = measure(IMPORTANCES["score"], subject_of(*matrices), FLOOR)
    return {name: each.entries for name, each in found.items() if each.entries is not None}


@pytest.fixture(scope="module")
def solved(matrices: tuple[Arrays, Arrays, Arrays]) -> dict[str, dict[str, LowRank]]:
    found = {}
    for solver in ALONE:
        kind = "none" if solver == "plain" else "score"
        solutions = factorize(
            subject_of(*matrices), importance=kind, solver=solver, rank=RANK, floor=FLOOR
        )
        found[solver] = {path: solution.factors for path, solution in solutions.items()}
    return found


def test_every_solver_of_entries_is_tried() -> None:
    thin = {name: each for name, each in SOLVERS.items() if each.form is PRODUCT}
    assert {name for name, each in thin.items() if each.uses <= {"entries"}} == set(ALONE)


@pytest.mark.parametrize("solver", ALONE)
def test_is_each_matrix_solved_alone(
    solver: str, solved: Any, matrices: tuple[Arrays, Arrays, Arrays], weighting: Arrays
) -> None:
    weights = matrices[0]
    assert set(solved[solver]) == set(weights)
    for name, w in weights.items():
        a, b = map(np.asarray, solved[solver][name])
        assert (a.shape, b.shape) == ((w.shape[0], RANK), (RANK, w.shape[1]))
        alone = ALONE[solver](w, weighting[name])
        np.testing.assert_allclose(a @ b, np.asarray(alone.a) @ alone.b, atol=1e-4)
        np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-4)  # balanced


def test_solvers_differ_as_they_should(
    solved: Any, matrices: tuple[Arrays, Arrays, Arrays], weighting: Arrays
) -> None:
    def error(solver: str, name: str) -> float:
        a, b = map(np.asarray, solved[solver][name])
        return float((weighting[name] * (matrices[0][name] - a @ b) ** 2).sum())

    for name in matrices[0]:
        assert error("elementwise", name) < 0.99 * error("row", name)
        assert error("elementwise", name) < 0.99 * error("plain", name)
    assert sum(error("row", n) for n in weighting) < sum(error("plain", n) for n in weighting)


def test_kind_of_importance_is_the_one_asked_for(matrices: tuple[Arrays, Arrays, Arrays]) -> None:
    # With every entry as important, the weighted solution is the plain one.
    ones = {name: jnp.ones_like(w) for name, w in matrices[0].items()}
    even = subject_of(matrices[0], ones, {name: x > 0 for name, x in ones.items()})
    found = factorize(even, importance="mask", solver="row", rank=RANK)
    for name, w in matrices[0].items():
        u, s, vt = np.linalg.svd(np.asarray(w, float))
        plain = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
        np.testing.assert_allclose(found[name].factors.dense(), plain, atol=1e-5)


@pytest.mark.parametrize("bad", ["weight", "score"])
def test_what_is_not_finite_is_named(bad: str, matrices: tuple[Arrays, Arrays, Arrays]) -> None:
    weights, scores, masks = (dict(tree) for tree in matrices)
    tree = weights if bad == "weight" else scores
    tree["m3"] = tree["m3"].at[1, 1].set(jnp.nan)
    with pytest.raises(LpafError, match="m3.*contain NaN or infinity"):
        factorize(subject_of(weights, scores, masks), importance="score", solver="row", rank=RANK)


@pytest.mark.parametrize("rule", ["feed-forward", "values-first"])
def test_rules_that_go_by_names_see_those_of_layers(rule: str) -> None:
    """Parameters have a `.kernel` behind them, by which no layer of a block is known."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    rng = np.random.default_rng(0)
    weights = {
        f"model.layers.0.{name}.kernel": jnp.asarray(rng.normal(size=(24, 24)), jnp.float32)
        for name in (*names, "mlp.up_proj", "mlp.down_proj")
    }
    found = factorize(
        subject_of(weights, {}, {}), importance="none", solver="plain", ranks=rule, params=0.75
    )
    ranks = {path.split(".")[-2]: solution.factors.rank for path, solution in found.items()}
    if rule == "feed-forward":
        # Two of six matrices pay for a quarter of all: a quarter of them is left.
        assert ranks == {"up_proj": 3, "down_proj": 3}
    else:
        assert ranks == {"q_proj": 6, "k_proj": 6, "up_proj": 9, "down_proj": 9}
