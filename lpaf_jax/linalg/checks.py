"""Checks of arguments: shapes always, values only where they are known (not under tracing)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lpaf_jax.linalg.scaling import as_dtype, magnitude

# How far from symmetric, relative to its largest entry, a matrix counts as badly rounded (twice the
# resolution of bfloat16), and beyond it as the wrong matrix.
_VISIBLE = 2**-6


def is_known(x: Any) -> bool:
    """Whether this process can look at the values of `x`: not traced, no part on other machines."""
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def holds(test: Callable[[Array], Array], x: Array) -> bool:
    """Whether `test` holds for all entries of `x`; taken to hold where they are not known."""
    if not is_known(x):
        return True
    # A known array inside of a traced function would otherwise give a traced answer.
    with jax.ensure_compile_time_eval():
        return bool(jnp.all(test(x)))


def as_floats(*arrays: Any) -> tuple[Array, ...]:
    """The arrays in one dtype to solve in: float64 where one of them is, else float32.

    Half precision, integers and booleans are accepted and solved in float32: an SVD or a linear
    system in bfloat16 has no correct digits left.
    """
    converted = [jnp.asarray(x) for x in arrays]
    for x in converted:
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError("complex matrices are not supported: pass the real and imaginary parts")
    double = any(x.dtype == np.dtype("float64") for x in converted)
    dtype = jnp.float64 if double else jnp.float32
    return tuple(
        as_dtype(x, dtype) if x.dtype == np.dtype("float32") else x.astype(dtype) for x in converted
    )


def check_matrix(w: Array, name: str = "w") -> None:
    """Raise ValueError unless `w` is a non-empty matrix with finite entries."""
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(
            f"{name} must be a non-empty matrix (m, n), got shape {w.shape}; "
            "for a stack of matrices use jax.vmap"
        )
    if not holds(jnp.isfinite, w):
        raise ValueError(f"{name} has NaN or infinite entries: repair or drop this matrix first")


def check_importance(importance: Array, w: Array) -> None:
    """Raise ValueError unless `importance` fits `w` and is finite, non-negative, not all zero."""
    if importance.shape != w.shape:
        raise ValueError(
            f"importance has shape {importance.shape} but w has {w.shape}: they must be equal"
        )
    if not holds(jnp.isfinite, importance):
        raise ValueError("importance has NaN or infinite entries: replace them, e.g. with zero")
    if not holds(lambda x: x >= 0, importance):
        raise ValueError("importance has negative entries: clip them, e.g. jnp.maximum(score, 0)")
    if not holds(lambda x: magnitude(x)[0].max() > 0, importance):
        raise ValueError("importance is zero everywhere: nothing would be fitted; pass ones")


def check_integer(number: Any, name: str) -> None:
    """Raise TypeError unless `number` is a Python integer, which a static argument must be."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        kind = type(number).__name__
        raise TypeError(f"{name} must be a Python integer (it is static), got {kind}")


def check_metric(metric: Array, size: int, name: str) -> None:
    """Raise ValueError unless `metric` may be a semi-definite matrix or its diagonal, of `size`."""
    if metric.shape not in ((size,), (size, size)):
        raise ValueError(
            f"{name} has shape {metric.shape} but must be ({size}, {size}) or, diagonal, ({size},)"
        )
    if not holds(jnp.isfinite, metric):
        raise ValueError(f"{name} has NaN or infinite entries: compute it again without them")
    if metric.ndim == 1:
        if not holds(lambda x: x >= 0, metric):
            raise ValueError(f"{name} has negative entries: a weight is at least 0")
        return
    if not holds(lambda x: jnp.abs(x - x.T) <= _VISIBLE * jnp.abs(x).max(), metric):
        raise ValueError(f"{name} is not symmetric: pass second moments, e.g. x.T @ x / len(x)")
    if not holds(lambda x: jnp.diagonal(x) >= -_VISIBLE * jnp.abs(x).max(), metric):
        raise ValueError(f"{name} has negative diagonal entries: it is not semi-definite")


def check_rank(rank: int, shape: tuple[int, ...]) -> None:
    """Raise unless `rank` is a Python integer between 1 and the smaller side of `shape`."""
    check_integer(rank, "rank")
    if not 1 <= rank <= min(shape):
        raise ValueError(f"rank must lie between 1 and {min(shape)} for shape {shape}, got {rank}")


def check_sides(rows: Sequence[int], columns: Sequence[int], w: Array) -> None:
    """Raise unless `rows` multiply to the rows of the matrix `w`, and `columns` to its columns."""
    for side in (*rows, *columns):
        check_integer(side, "each side in shape")
    if min(*rows, *columns) < 1:
        raise ValueError(f"each side in shape must be at least 1, got {rows} and {columns}")
    product = math.prod(rows), math.prod(columns)
    if product != w.shape:
        raise ValueError(
            f"shape splits a matrix {product}, but w has {w.shape}: rows {tuple(rows)} must "
            f"multiply to {w.shape[0]} and columns {tuple(columns)} to {w.shape[1]}"
        )


def check_at_least_zero(**numbers: Any) -> None:
    """Raise ValueError unless each of the named arguments is one finite number >= 0."""
    for name, number in numbers.items():
        if jnp.ndim(number) != 0:
            raise ValueError(f"{name} must be one number, got shape {jnp.shape(number)}")
        if is_known(number) and not (np.isfinite(float(number)) and float(number) >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {float(number)}")


def check_share(**numbers: Any) -> None:
    """Raise ValueError unless each of the named arguments is one number above 0, at most 1."""
    for name, number in numbers.items():
        if jnp.ndim(number) != 0:
            raise ValueError(f"{name} must be one number, got shape {jnp.shape(number)}")
        if is_known(number) and not 0 < float(number) <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {float(number)}")


def check_count(**numbers: Any) -> None:
    """Raise unless each of the named arguments is a Python integer >= 0."""
    for name, number in numbers.items():
        check_integer(number, name)
        if number < 0:
            raise ValueError(f"{name} must be at least 0, got {number}")


def check_init(a: Array, b: Array, shape: tuple[int, ...], rank: int) -> None:
    """Raise ValueError unless `a` and `b` are finite factors of rank `rank` for `shape`."""
    needed = (shape[0], rank), (rank, shape[1])
    if (a.shape, b.shape) != needed:
        raise ValueError(
            f"init has factors of shapes {a.shape} and {b.shape}, but rank {rank} of a matrix "
            f"{shape} needs {needed[0]} and {needed[1]}"
        )
    check_matrix(a, "init.a")
    check_matrix(b, "init.b")
