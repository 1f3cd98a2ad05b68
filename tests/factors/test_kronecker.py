"""Matrices as sums of Kronecker products: read here and in PyTorch, cut, tuned and exported."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.factorization import to_factors
from lpaf_jax.factorization.swap import layer_of
from lpaf_jax.factors import KINDS
from lpaf_jax.linalg import Kronecker, kronecker_shapes, nearest_kronecker
from lpaf_jax.models import compressible, parameters
from lpaf_jax.recipes import make_recipe
from lpaf_jax.solvers import SOLVERS, Solution
from tests.factors.folders import FAMILIES, config_of, logits, with_config
from tests.factors.test_folders import assert_read_everywhere, assert_same_when_dense
from tests.tiny_decoder import write_decoder

KIND = KINDS["kronecker"]
RECORD = {"kind": "kronecker", "rank": 3, "outer": [2, 5], "inner": [4, 3]}
SHAPE = (8, 15)


def write_kronecker(place: Path, family: str) -> Path:
    source = write_decoder(place / f"{family}_dense", family)
    model, found = load_model(source, head="lm"), {}
    for i, (path, w) in enumerate(compressible(parameters(model)).items()):
        if i % 3:
            found[path] = Solution(nearest_kronecker(w, kronecker_shapes(*w.shape), 2 + i % 4))
    to_factors(model, found)
    folder = place / family
    save_model(model, folder, source=source, label_names=None, card="# Kronecker\n")
    np.save(folder / "expected.npy", logits(model))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("kronecker")
    return {family: write_kronecker(place, family) for family in FAMILIES}


def test_what_is_written_is_read_here_and_in_pytorch(folders: dict[str, Path]) -> None:
    assert_read_everywhere(folders)
    records = config_of(folders["llama"])["lpaf_factors"]
    assert {each["kind"] for each in records.values()} == {"kronecker"}


def test_dense_it_is_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    assert_same_when_dense(folders, tmp_path)


def test_inspect_counts_terms_and_numbers(folders: dict[str, Path]) -> None:
    for family, folder in folders.items():
        records = config_of(folder)["lpaf_factors"]
        cut = [each for each in inspect_model(folder)["matrices"] if each["kind"] == "kronecker"]
        assert len(cut) == len(records), family
        for each in cut:
            record = next(r for path, r in records.items() if path.endswith(each["name"]))
            size = record["rank"] * (np.prod(record["outer"]) + np.prod(record["inner"]))
            assert each["parameters"] == size < each["dense_parameters"]
            assert each["rank"] == record["rank"]


@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_the_sum(tokens: int, bias: bool) -> None:
    random = np.random.default_rng(0)
    sizes = KIND.shapes(RECORD, SHAPE)
    factors = {leaf: random.normal(size=size) for leaf, size in sizes.items()}
    c, x = random.normal(size=15), random.normal(size=(tokens, 8))
    each = zip(factors["outer"], factors["inner"], strict=True)
    whole = sum(np.kron(a, b) for a, b in each)
    np.testing.assert_allclose(KIND.dense(factors), whole, rtol=1e-12)
    arrays = {leaf: jnp.asarray(value, jnp.float32) for leaf, value in factors.items()}
    layer: Any = KIND.layer(arrays, jnp.asarray(c, jnp.float32) if bias else None, RECORD)
    expected = x @ whole + (c if bias else 0)
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), expected, rtol=2e-4, atol=2e-4)
    assert KIND.record(layer) == RECORD
    empty = KIND.empty(RECORD, SHAPE, bias=bias)
    shapes = [{p: v.shape for p, v in parameters(each).items()} for each in (empty, layer)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("tokens", [1, 1000])
def test_it_never_computes_more_than_both_ways_would(tokens: int) -> None:
    factors = Kronecker(jnp.ones((20, 24, 16)), jnp.ones((20, 16, 24)))
    layer = layer_of(factors, None)
    lowered = jax.jit(lambda x: layer(x)).lower(jnp.ones((tokens, 384)))
    taken = lowered.cost_analysis()["flops"]
    ways = 2 * tokens * factors.cost, 2 * (tokens + factors.rank) * 384**2
    assert taken <= 1.05 * min(ways) < 0.9 * max(ways)


def test_what_no_kind_is_made_of() -> None:
    with pytest.raises(TypeError, match="no kind of factors stores a tuple"):
        layer_of((jnp.ones(2), jnp.ones(2)), None)


def test_sizes_and_operations() -> None:
    assert KIND.size(RECORD, SHAPE) == 3 * (10 + 12)
    assert KIND.flop(RECORD, SHAPE) == 2 * min(3 * 2 * 3 * (4 + 5), 3 * 4 * 5 * (2 + 3), 8 * 15)
    one = RECORD | {"rank": 1}
    assert KIND.flop(one, SHAPE) == 2 * 2 * 3 * (4 + 5)
    assert KIND.summary(RECORD) == "3 of 2×5"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 0}, "has rank 0"),
        ({"outer": [2, 4]}, r"has \[2, 4\] ⊗ \[4, 3\], which is not of shape \[8, 15\]"),
        ({"inner": [4, 3, 1]}, "has inner .*, which must be two sides"),
        ({"outer": [True, 5]}, "has outer"),
        ({"outer": None}, "has outer None"),
    ],
)
def test_a_record_that_does_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KIND.shapes(RECORD | changed, SHAPE)


def test_a_folder_whose_record_does_not_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(folders["gpt2"], folder)
    records = config_of(folder)["lpaf_factors"]
    path = next(iter(records))
    records[path] |= {"outer": [7, 7]}
    with_config(folder, lpaf_factors=records)
    with pytest.raises(LpafError, match=rf"{path}, of kind kronecker, has \[7, 7\] ⊗"):
        load_model(folder)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((384, 1536), ((24, 32), (16, 48))),
        ((768, 768), ((24, 32), (32, 24))),
        ((7, 7), ((1, 7), (7, 1))),
        ((1, 12), ((1, 3), (1, 4))),
    ],
)
def test_shapes_with_the_fewest_numbers(shape: tuple[int, int], expected: Any) -> None:
    found = kronecker_shapes(*shape)
    price = sum(map(np.prod, found))
    m, n = shape
    sides = [(a, b) for a in range(1, m + 1) for b in range(1, n + 1) if m % a == n % b == 0]
    assert price == min(a * b + m * n // (a * b) for a, b in sides)
    assert sorted(found) == sorted(expected)


def test_the_solver_is_the_nearest_sum_and_its_price_is_that_of_a_rank() -> None:
    w = jnp.asarray(np.random.default_rng(0).normal(size=(12, 18)), jnp.float32)
    solver = SOLVERS["kronecker"]
    ranked = solver.ranked((12, 18))
    found = solver.solve(w, Any, 4, 0.0).factors  # type: ignore[arg-type]
    assert np.prod(ranked) == 12 * 18
    assert found.size == 4 * sum(ranked)
    (m1, n1), (m2, n2) = kronecker_shapes(12, 18)
    blocks = np.asarray(w).reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(ranked)
    s = np.linalg.svd(blocks.astype(np.float64), compute_uv=False)
    lost = float(jnp.sum(jnp.square(w - found.dense())))
    assert lost == pytest.approx(float(np.sum(s[4:] ** 2)), rel=1e-4)
    assert jax.tree.map(jnp.shape, found) == Kronecker((4, m1, n1), (4, m2, n2))


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((6, 8), ((3, 8), (2, 1))),
        ((8, 6), ((8, 3), (1, 2))),
        ((6, 6), ((3, 6), (2, 1))),
        ((5, 6), ((5, 3), (1, 2))),
        ((6, 5), ((3, 5), (2, 1))),
        ((5, 7), ((5, 7), (1, 1))),
    ],
)
def test_pairs_halve_the_smaller_side_that_is_even(shape: Any, sides: Any) -> None:
    outer, inner = sides
    w = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    found = SOLVERS["kronecker-pairs"].solve(w, Any, 1, 0.0).factors  # type: ignore[arg-type]
    assert (found.a.shape[1:], found.b.shape[1:]) == (outer, inner)
    assert SOLVERS["kronecker-pairs"].ranked(shape) == (np.prod(outer), np.prod(inner))


@pytest.mark.parametrize("ranks", ["loss", "measured"])
def test_ranks_that_do_not_know_what_a_term_is_worth(ranks: str) -> None:
    recipe = make_recipe("shapeshifter").with_settings(ranks=ranks)
    with pytest.raises(SettingError, match=rf"'{ranks}' cannot judge .* use --ranks share"):
        recipe.check()


def test_mixing_is_for_thin_factors() -> None:
    recipe = make_recipe("lpaf").with_settings(importance="none", solver="kronecker")
    with pytest.raises(SettingError, match="'kronecker' does not give two thin factors"):
        recipe.check_order()
