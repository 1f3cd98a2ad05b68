"""Checks of settings: each names the setting and its range."""

from collections.abc import Callable, Iterable
from typing import Any

from lpaf_jax.core.errors import SettingError


def whole(least: int, most: int | None = None) -> Callable[[Any], bool]:
    """Whether a value is a whole number within bounds."""

    def good(value: Any) -> bool:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and least <= value and (most is None or value <= most)

    return good


def demand(owner: Any, name: str, good: Callable[[Any], bool], range_: str) -> None:
    """Refuse the field `name` of `owner` unless it is `good`.

    Raises:
        SettingError: it is not, or is of a type that cannot be compared.
    """
    value = getattr(owner, name)
    try:
        fine = good(value)
    except TypeError:
        fine = False
    if not fine:
        raise SettingError((name,), f"is {value!r}, but must be {range_}")


def demand_choice(owner: Any, name: str, choices: Iterable[str]) -> None:
    """Refuse the field `name` of `owner` unless it is one of `choices`.

    Raises:
        SettingError: it is not; the message lists them.
    """
    value, known = getattr(owner, name), list(choices)
    if value not in known:
        raise SettingError((name,), f"{value!r} is unknown: choose one of {', '.join(known)}")
