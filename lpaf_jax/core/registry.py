"""Choices by name: each registered once, where it is written, and looked up everywhere."""

import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from lpaf_jax.core.errors import LpafError

Choice = TypeVar("Choice")


class Registry(Mapping[str, Choice], Generic[Choice]):
    """A mapping from names to choices, in the order in which they were registered.

    Args:
        kind: what a choice is called in an error, such as "importance".
        of: what `register` takes; its `name` is that of the choice.
    """

    def __init__(self, kind: str, of: type | None = None):
        self.kind, self._of = kind, of
        self._choices: dict[str, Choice] = {}

    def register(self, choice: Any) -> Choice:
        """Register `choice` by its own name and return it.

        Raises:
            TypeError: it is of another type.
            LpafError: see `add`.
        """
        if self._of is not None and not isinstance(choice, self._of):
            given = getattr(choice, "__name__", repr(choice))
            raise TypeError(f"{self.kind} {given}: register an instance of {self._of.__name__}")
        return self.add(choice.name, choice)

    def add(self, name: str, choice: Choice) -> Choice:
        """Register `choice` and return it.

        Raises:
            LpafError: the name is taken by another choice.
        """
        if self._choices.get(name, choice) is not choice:
            raise LpafError(f"{self.kind} {name!r} is registered already: give it another name")
        self._choices[name] = choice
        return choice

    def __getitem__(self, name: str) -> Choice:
        """The choice of that name.

        Raises:
            LpafError: there is none; the message names those there are.
        """
        if name not in self._choices:
            raise LpafError(f"unknown {self.kind} {name!r}: choose one of {', '.join(self)}")
        return self._choices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._choices)

    def __len__(self) -> int:
        return len(self._choices)

    def __contains__(self, name: object) -> bool:
        return name in self._choices


def import_modules(package: str, first: str = "", skip: str | None = None) -> None:
    """Import every module of a package, so that each registers what it has.

    Args:
        package: its dotted name; to be called at the end of its `__init__`.
        first: the module whose choices are listed first; the others follow by name.
        skip: the ending of the names of those that are left out.
    """
    names = (module.name for module in pkgutil.iter_modules(import_module(package).__path__))
    for name in sorted(names, key=lambda name: (name != first, name)):
        if skip is None or not name.endswith(skip):
            import_module(f"{package}.{name}")
