from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpaf_jax.linalg import allocate_ranks, rank_for_ratio

BERT_BASE = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
MINILM = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]


Problem = tuple[list[list[int]], list[tuple[int, int]], int]


def kept(shapes: list[tuple[int, int]], rank: int) -> float:
    return rank * sum(m + n for m, n in shapes) / sum(m * n for m, n in shapes)


@pytest.mark.parametrize(("ratio", "rank"), [(0.508, 260), (0.254, 130), (0.157, 80)])
def test_ranks_of_the_paper(ratio: float, rank: int) -> None:
    assert rank_for_ratio(BERT_BASE, ratio) == rank


@pytest.mark.parametrize("shapes", [BERT_BASE, MINILM, [(7, 1000), (13, 17)]])
@pytest.mark.parametrize("ratio", [0.05, 0.16, 0.25, 1 / 3, 0.5])
def test_largest_rank_within_the_budget(shapes: list[tuple[int, int]], ratio: float) -> None:
    rank = rank_for_ratio(shapes, ratio)
    assert kept(shapes, rank) <= ratio or rank == 1
    assert kept(shapes, rank + 1) > ratio or rank == min(map(min, shapes))


def test_a_whole_rank_is_not_lost_to_rounding() -> None:
    # 0.07 · 100 · 100 / 200 = 3.5, and every ratio k / 50 asks for exactly k.
    assert [rank_for_ratio([(100, 100)], k / 50) for k in range(1, 51)] == list(range(1, 51))


def test_at_least_one_and_at_most_the_smallest_side() -> None:
    assert rank_for_ratio(MINILM, 1e-6) == 1
    assert rank_for_ratio([(2, 100), (1000, 1000)], 0.9) == 2


@pytest.mark.parametrize(
    ("shapes", "ratio", "message"),
    [
        ([], 0.5, "no shapes"),
        ([(4, 0)], 0.5, "positive sides"),
        ([(4, 4)], 0.0, "ratio"),
        ([(4, 4)], 1.5, "ratio"),
        ([(4, 4)], float("nan"), "ratio"),
    ],
)
def test_errors(shapes: list[tuple[int, int]], ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_for_ratio(shapes, ratio)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Spectra of whole numbers, whose energies are exact, with many ties; shapes; a step."""
    sides = st.tuples(st.integers(1, 5), st.integers(1, 15))
    shapes = draw(st.lists(sides, min_size=2, max_size=3))
    spectra = [
        sorted(draw(st.lists(st.integers(0, 6), min_size=r, max_size=r)), reverse=True)
        for r in map(min, shapes)
    ]
    return spectra, shapes, draw(st.integers(1, 3))


def cost(ranks: Sequence[int], shapes: list[tuple[int, int]]) -> int:
    return sum(k * (m + n) for k, (m, n) in zip(ranks, shapes, strict=True))


def energy(ranks: Sequence[int], spectra: Sequence[Sequence[int]]) -> int:
    return sum(x * x for k, s in zip(ranks, spectra, strict=True) for x in s[:k])


def choices(shape: tuple[int, int], multiple_of: int) -> list[int]:
    side = min(shape)
    return [k for k in range(1, side + 1) if k % multiple_of == 0 or k == side]


def allocate(
    spectra: list[list[int]], shapes: list[tuple[int, int]], budget: int, multiple_of: int = 1
) -> list[int]:
    return allocate_ranks([np.array(s) for s in spectra], shapes, budget, multiple_of)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(0, 1))
def test_allocation_misses_the_optimum_by_less_than_one_step(problem: Problem, rich: float) -> None:
    spectra, shapes, multiple_of = problem
    options = [choices(shape, multiple_of) for shape in shapes]
    least, most = (cost([option[end] for option in options], shapes) for end in (0, -1))
    left = int(rich * (most - least))
    budget = least + left
    ranks = allocate(spectra, shapes, budget, multiple_of)
    assert cost(ranks, shapes) <= budget
    assert all(k in option for k, option in zip(ranks, options, strict=True))

    # By hand: steps in the order of their worth, until the first that does not fit.
    steps = []
    for i, (s, shape, option) in enumerate(zip(spectra, shapes, options, strict=True)):
        for j, (low, high) in enumerate(pairwise(option)):
            gain, price = sum(x * x for x in s[low:high]), (high - low) * sum(shape)
            steps.append((-Fraction(gain, price), j, i, price, gain))
    sure, miss = energy([option[0] for option in options], spectra), 0
    for *_, price, gain in sorted(steps):
        if price > left:
            miss = gain
            break
        sure, left = sure + gain, left - price

    best = max(energy(k, spectra) for k in product(*options) if cost(k, shapes) <= budget)
    got = energy(ranks, spectra)
    assert got >= sure
    assert got == best or best - got < miss


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(problems())
def test_more_budget_never_keeps_less(problem: Problem) -> None:
    spectra, shapes, multiple_of = problem
    least = cost([choices(shape, multiple_of)[0] for shape in shapes], shapes)
    energies = [
        energy(allocate(spectra, shapes, budget, multiple_of), spectra)
        for budget in range(least, cost([min(shape) for shape in shapes], shapes) + 1)
    ]
    assert energies == sorted(energies)
    # In the end everything is kept.
    assert energies[-1] == energy([5] * len(shapes), spectra)


def test_equal_shapes_keep_the_largest_singular_values_of_all(rng: np.random.Generator) -> None:
    shapes = [(20, 30)] * 5
    spectra = [np.sort(rng.exponential(size=20))[::-1] * scale for scale in (1, 2, 3, 5, 8)]
    for count in (5, 17, 50, 99, 100):
        ranks = allocate_ranks(spectra, shapes, count * 50 + 49)
        # The first of each matrix is kept anyhow.
        rest = np.concatenate([s[1:] for s in spectra])
        threshold = np.sort(rest)[::-1][count - 5] if count < 100 else -1
        assert ranks == [1 + int(np.sum(s[1:] > threshold)) for s in spectra]
        assert sum(ranks) == count


def test_gain_is_weighed_against_cost() -> None:
    # Twice the energy at three times the price waits; at the price of one and a half it does not.
    spectra = [[9, 1, 1], [9, 2**0.5, 2**0.5]]
    assert allocate_ranks(np.array(spectra), [(3, 5), (3, 21)], 32 + 24) == [3, 1]
    assert allocate_ranks(np.array(spectra), [(3, 5), (3, 9)], 20 + 24) == [1, 3]


def test_slack_is_filled_by_a_step_that_fits() -> None:
    # The second matrix is worth more for each parameter, but 9 of them are left and it takes 12.
    spectra, shapes = [np.array([9, 2, 2]), np.array([9, 8, 8])], [(3, 5), (3, 9)]
    assert allocate_ranks(spectra, shapes, 20 + 9) == [2, 1]
    assert allocate_ranks(spectra, shapes, 20 + 12) == [1, 2]
    assert allocate_ranks(spectra, shapes, 20 + 20) == [2, 2]


def test_multiples_and_the_side_that_is_none() -> None:
    spectra = [np.ones(20), np.ones(5), np.arange(16)[::-1]]
    shapes = [(20, 40), (5, 9), (16, 16)]
    least = 8 * 60 + 5 * 14 + 8 * 32
    assert allocate_ranks(spectra, shapes, least, 8) == [8, 5, 8]
    assert allocate_ranks(spectra, shapes, 10**9, 8) == [20, 5, 16]
    # 16 to 20 costs half of a step, and comes only after it.
    assert allocate_ranks(spectra[:2], shapes[:2], 8 * 60 + 5 * 14 + 4 * 60, 8) == [8, 5]


def test_rounding_in_a_flat_spectrum_moves_no_step_ahead(rng: np.random.Generator) -> None:
    # From 3 to 6 does not fit, and 6 to 8, which would, may not come first.
    for height in rng.uniform(size=50):
        assert allocate_ranks([np.full(8, height)], [(8, 8)], (3 + 2) * 16, 3) == [3]


def test_ties_go_round_the_matrices_from_the_first() -> None:
    spectra, shapes = [np.full(7, 1 / 3)] * 3, [(7, 8)] * 3
    ranks = [allocate_ranks(spectra, shapes, 15 * count) for count in range(3, 8)]
    assert ranks == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2], [3, 2, 2]]


def test_nothing_is_spent_on_singular_values_of_zero() -> None:
    spectra = [np.array([3.0, 2, 0, 0]), np.zeros(4)]
    assert allocate_ranks(spectra, [(4, 4)] * 2, 10**6) == [2, 1]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_units_do_not_matter(scale: float) -> None:
    spectra = [np.array([4, 3, 1]), np.array([7, 2, 1])]
    shapes = [(3, 4), (3, 5)]
    scaled = allocate_ranks([scale * s for s in spectra], shapes, 30)
    assert scaled == allocate_ranks(spectra, shapes, 30) == [2, 2]


def test_spectra_of_any_kind(rng: np.random.Generator) -> None:
    spectra = np.sort(rng.integers(1, 9, size=(2, 6)))[:, ::-1]
    expected = allocate_ranks(spectra, [(6, 9)] * 2, 90)
    for dtype in (jnp.float32, jnp.bfloat16):
        ranks = allocate_ranks([jnp.asarray(s, dtype) for s in spectra], [(6, 9)] * 2, 90)
        assert ranks == expected
        assert all(type(k) is int for k in ranks)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"budget": 0.5},
            r"0\.5 parameters \(not a ratio\) is too small .* 2 matrices, which takes 17$",
        ),
        ({"budget": 16}, "takes 17$"),
        ({"budget": float("nan")}, "is too small"),
        ({"multiple_of": 2, "budget": 33}, "takes 34$"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"multiple_of": 1.5}, "multiple_of"),
        ({"shapes": [], "spectra": []}, "no shapes"),
        ({"shapes": [(3, 5), (4, 0)]}, "positive sides"),
        ({"spectra": [[2, 1, 1]]}, "1 spectra for 2 shapes"),
        ({"spectra": [[2, 1, 1], [2, 1, 1]]}, r"spectrum 1 .* matrix \(4, 5\) has 4"),
        ({"spectra": [[[2, 1, 1]], [2, 1, 1, 1]]}, r"spectrum 0 has shape \(1, 3\)"),
        ({"spectra": [[2, 1, 1], [2, 1, 1, -1]]}, "spectrum 1 has negative"),
        ({"spectra": [[2, 1, np.nan], [2, 1, 1, 1]]}, "spectrum 0 has NaN"),
        ({"spectra": [[np.inf, 1, 1], [2, 1, 1, 1]]}, "spectrum 0 has NaN or infinite"),
        ({"spectra": [[1, 1, 2], [2, 1, 1, 1]]}, "spectrum 0 is not in descending order"),
    ],
)
def test_errors_of_the_allocation(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "spectra": [[2, 1, 1], [2, 1, 1, 1]],
        "shapes": [(3, 5), (4, 5)],
        "budget": 100,
    } | changed
    arguments["spectra"] = [np.array(s) for s in arguments["spectra"]]
    with pytest.raises(ValueError, match=message):
        allocate_ranks(**arguments)
