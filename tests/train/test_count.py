"""How many entries a share of many is, against Python's fractions."""

from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpaf_jax.train.select import MOST, count_of

TOTALS = [
    0,
    1,
    2,
    4095,
    4096,
    4097,
    2**24 - 1,
    2**24 + 1,
    84_934_656,  # the kernels of BERT-base
    85_000_001,
    2**30 + 12_345,
    MOST - 4096,
    MOST - 1,
    MOST,
]
SHARES = [
    *(0.0, 1e-45, 1e-30, 2**-24, 2**-13, 2**-12, 2**-12 + 2**-35, 1e-3, 0.1, 0.15, 0.25, 0.3),
    *(1 / 3, 0.5, 0.5 - 2**-25, 0.7, 0.9, 4095 / 4096, 1 - 2**-24, 1.0),
]
counts = jax.jit(lambda share: [count_of(share, total) for total in TOTALS])


def check(share: np.float32, found: list[jax.Array]) -> None:
    for total, count in zip(TOTALS, found, strict=True):
        product = Fraction(float(share)) * total
        assert abs(int(count) - product) <= Fraction(57, 100), (share, total)
        assert 0 <= int(count) <= total


@pytest.mark.parametrize("share", SHARES)
def test_is_the_nearest_integer(share: float) -> None:
    check(np.float32(share), counts(np.float32(share)))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.floats(0, 1, width=32))
def test_at_any_share(share: float) -> None:
    check(np.float32(share), counts(np.float32(share)))


@pytest.mark.parametrize("total", TOTALS)
def test_all_and_nothing_are_exact(total: int) -> None:
    # A schedule that overshoots asks for no more than there is.
    for share, expected in ((0.0, 0), (1.0, total), (-0.25, 0), (1.5, total)):
        assert int(count_of(share, total)) == expected


def test_few_are_rounded() -> None:
    for total in range(1, 60):
        for numerator in range(21):
            share = np.float32(numerator / 20)
            product = Fraction(float(share)) * total
            # Near halves float32 decides by what is left of the share.
            if abs(product % 1 - Fraction(1, 2)) > Fraction(1, 1000):
                assert int(count_of(share, total)) == round(product)
    for share, total, expected in ((0.5, 1, 1), (0.5, 5, 3), (0.25, 30, 8), (0.75, 2, 2)):
        assert int(count_of(share, total)) == expected
