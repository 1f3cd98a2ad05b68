"""Ranks with a dense matrix as a choice, against every choice there is."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpaf_jax.linalg import allocate_ranks, allocate_ranks_or_dense

Shape = tuple[int, int]
Choice = int | None
Problem = tuple[list[list[int]], list[Shape], int]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Spectra of whole numbers, whose energies are exact, with many ties; shapes; a step."""
    sides = st.tuples(st.integers(1, 9), st.integers(1, 12))
    shapes = draw(st.lists(sides, min_size=1, max_size=3))
    spectra = [
        sorted(draw(st.lists(st.integers(0, 6), min_size=r, max_size=r)), reverse=True)
        for r in map(min, shapes)
    ]
    return spectra, shapes, draw(st.integers(1, 3))


def choices(shape: Shape, multiple_of: int) -> list[Choice]:
    m, n = shape
    smaller = [k for k in range(1, min(shape) + 1) if k * (m + n) < m * n]
    stepped = [k for k in smaller if k % multiple_of == 0] or smaller[-1:]
    return [*stepped, None]


def cost(choice: Choice, shape: Shape) -> int:
    return shape[0] * shape[1] if choice is None else choice * sum(shape)


def loss(choice: Choice, spectrum: Sequence[int]) -> int:
    return 0 if choice is None else sum(x * x for x in spectrum[choice:])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(problems(), st.floats(0, 1))
def test_the_optimum_is_missed_by_less_than_one_segment(problem: Problem, rich: float) -> None:
    spectra, shapes, step = problem
    options = [choices(shape, step) for shape in shapes]
    points = [
        [(cost(c, shape), loss(c, s)) for c in option]
        for option, shape, s in zip(options, shapes, spectra, strict=True)
    ]
    least, most = (sum(p[end][0] for p in points) for end in (0, -1))
    budget = least + int(rich * (most - least))
    found = allocate_ranks_or_dense([np.array(s) for s in spectra], shapes, budget, step)
    assert all(c in option for c, option in zip(found, options, strict=True))
    assert sum(map(cost, found, shapes)) <= budget
    got = sum(map(loss, found, spectra))
    best = min(
        sum(p[1] for p in chosen)
        for chosen in product(*points)
        if sum(p[0] for p in chosen) <= budget
    )
    if got == best:
        return
    # The price at which the dual is largest, and who is undecided there.
    prices = [
        Fraction(a[1] - b[1], b[0] - a[0])
        for each in points
        for a, b in combinations(each, 2)
        if a[1] > b[1] and b[0] > a[0]
    ]

    def dual(price: Fraction) -> Fraction:
        return sum((min(e + price * c for c, e in each) for each in points), -price * budget)

    price = max(prices, key=dual)
    undecided = []
    for each in points:
        lowest = min(e + price * c for c, e in each)
        ties = [e for c, e in each if e + price * c == lowest]
        undecided.append(max(ties) - min(ties))
    assert got - dual(price) < max(undecided)


def test_a_matrix_whose_tail_is_heavy_stays_dense_where_others_pay_for_it() -> None:
    flat, steep = np.ones(20), 0.5 ** np.arange(20)
    shapes = [(20, 20), (20, 20)]
    budget = 400 + 2 * 40
    assert allocate_ranks_or_dense([flat, steep], shapes, budget) == [None, 2]
    # Rank by rank the flat one takes more numbers than it has, and still loses energy.
    assert allocate_ranks([flat, steep], shapes, budget) == [11, 1]


@pytest.mark.parametrize("power", [-600, 0, 400])
def test_the_unit_of_the_spectra_does_not_matter(power: int) -> None:
    random = np.random.default_rng(0)
    shapes = [(30, 40), (25, 25), (8, 64)]
    spectra = [np.sort(random.exponential(size=min(s)))[::-1] for s in shapes]
    usual = allocate_ranks_or_dense(spectra, shapes, 1200)
    assert allocate_ranks_or_dense([np.ldexp(s, power) for s in spectra], shapes, 1200) == usual


def test_what_cannot_be_paid_for() -> None:
    with pytest.raises(ValueError, match="a budget of 23 parameters .* is too small .* takes 24"):
        allocate_ranks_or_dense([np.ones(4), np.ones(2)], [(4, 16), (2, 2)], 23)
    assert allocate_ranks_or_dense([np.ones(4), np.ones(2)], [(4, 16), (2, 2)], 24) == [1, None]
    with pytest.raises(ValueError, match="multiple_of"):
        allocate_ranks_or_dense([np.ones(4)], [(4, 16)], 64, 0)
