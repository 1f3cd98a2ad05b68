"""What a function computes, read from the program that JAX traces."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend


def equations(function: Callable[..., Any], *args: Any) -> list[Any]:
    """All equations of a function and of what it calls: loops, branches, compiled parts."""
    return list(_inside(jax.make_jaxpr(function)(*args).jaxpr))


def _inside(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _inside(inner)
