import pytest

from lpaf_jax.train.pace import Pace


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def take(pace: Pace, clock: Clock, *, steps: int, seconds: float, aside: float = 0.0) -> None:
    for _ in range(steps):
        clock.now += seconds
        pace.count()
    with pace.aside():
        clock.now += aside


def test_compilation_is_no_step() -> None:
    clock = Clock()
    pace = Pace(clock)
    take(pace, clock, steps=0, seconds=0, aside=30)
    assert pace.seconds() is None
    take(pace, clock, steps=6, seconds=0.5, aside=40)
    assert pace.seconds() == pytest.approx(0.5)
    take(pace, clock, steps=2, seconds=1.3, aside=20)
    assert pace.seconds() == pytest.approx((6 * 0.5 + 2 * 1.3) / 8)
    take(pace, clock, steps=0, seconds=0, aside=20)
    assert pace.seconds() == pytest.approx((6 * 0.5 + 2 * 1.3) / 8)


def test_a_few_steps_are_no_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    take(pace, clock, steps=2, seconds=7, aside=30)
    assert pace.seconds() is None
    take(pace, clock, steps=2, seconds=1)
    assert pace.seconds() is None
    take(pace, clock, steps=6, seconds=1)
    assert pace.seconds() == pytest.approx((2 * 7 + 8 * 1) / 10)


def test_old_steps_are_forgotten() -> None:
    clock = Clock()
    pace = Pace(clock)
    for seconds in (9, 1, 1, 1, 1, 1):
        take(pace, clock, steps=10, seconds=seconds)
        found = pace.seconds()
    assert found == pytest.approx(1)
