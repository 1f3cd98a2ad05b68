"""Matrices of rank k as `U M Vᵀ`, and how they move: derivatives of any order.

U and V have orthonormal columns, M is k × k. It is diagonal as it is computed, but it need not stay
so: singular vectors turn without limit where singular values meet, while the spaces that they span
do not. So the derivatives are those of the spaces and of M, and divide by gaps across the cut only.
They solve linear equations, and the singular values give the solution at once; what is
differentiated again are the equations (`custom_linear_solve`), never an SVD.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lpaf_jax.linalg.arithmetic import matmul, ratio
from lpaf_jax.linalg.lapack import qr, thin_svd


class Frame(NamedTuple):
    """The matrix `u @ core @ vt`."""

    u: Float[Array, "m k"]
    core: Float[Array, "k k"]
    vt: Float[Array, "k n"]


class _Spectrum(NamedTuple):
    """Singular values of a frame, and all that was cut off; for solving, not to be differentiated.

    Attributes:
      kept: (k,), the diagonal of the core.
      u, s, vt: of the rest.
    """

    kept: Array
    u: Array
    s: Array
    vt: Array


def leading_frame(w: Float[Array, "m n"], rank: int) -> Frame:
    """The best approximation of `w` of rank k, by a full SVD.

    Where the cut runs through equal singular values it has no derivative; the terms between them
    that would have no limit are 0.
    """
    return _leading(w, rank)[0]


def product_frame(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Frame:
    """All of `a @ b`, by two thin QR factorizations and a k × k SVD."""
    return _product(a, b)[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _leading(w: Array, rank: int) -> tuple[Frame, _Spectrum]:
    u, s, vt = thin_svd(w)
    return (
        Frame(u[:, :rank], jnp.diag(s[:rank]), vt[:rank]),
        _Spectrum(s[:rank], u[:, rank:], s[rank:], vt[rank:]),
    )


@_leading.defjvp
def _leading_jvp(
    rank: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Frame, _Spectrum], tuple[Frame, _Spectrum]]:
    (w,), (dw,) = primals, tangents
    frame, spectrum = _leading(w, rank)
    u, core, vt = frame

    def rest(x: Array) -> Array:
        return matmul(w, x) - matmul(u, matmul(core, matmul(vt, x)))

    def rest_transposed(x: Array) -> Array:
        return matmul(x, w) - matmul(matmul(matmul(x, u), core), vt)

    change = _moved(frame, spectrum, matmul(dw, vt.T), matmul(u.T, dw), rest, rest_transposed)
    return (frame, spectrum), (change, jax.tree.map(jnp.zeros_like, spectrum))


@jax.custom_jvp
def _product(a: Array, b: Array) -> tuple[Frame, _Spectrum]:
    qa, ra = qr(a)
    qb, rb = qr(b.T)
    u, s, vt = thin_svd(matmul(ra, rb.T))
    nothing = _Spectrum(s, u=qa[:, :0], s=s[:0], vt=qb.T[:0])
    return Frame(matmul(qa, u), jnp.diag(s), matmul(vt, qb.T)), nothing


@_product.defjvp
def _product_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[tuple[Frame, _Spectrum], tuple[Frame, _Spectrum]]:
    (a, b), (da, db) = primals, tangents
    frame, spectrum = _product(a, b)
    u, _, vt = frame
    change = _moved(
        frame,
        spectrum,
        matmul(da, matmul(b, vt.T)) + matmul(a, matmul(db, vt.T)),
        matmul(matmul(u.T, da), b) + matmul(matmul(u.T, a), db),
        lambda x: jnp.zeros((len(a), x.shape[1]), x.dtype),
        lambda x: jnp.zeros((len(x), b.shape[1]), x.dtype),
    )
    return (frame, spectrum), (change, jax.tree.map(jnp.zeros_like, spectrum))


def _moved(
    frame: Frame,
    spectrum: _Spectrum,
    images: Array,
    preimages: Array,
    rest: Callable[[Array], Array],
    rest_transposed: Callable[[Array], Array],
) -> Frame:
    """The tangent of a frame of W, from `images = dW V` and `preimages = Uᵀ dW`.

    Of U and V it is what is orthogonal to them: turning within their spaces changes nothing. With
    R the rest `W − U M Vᵀ`, it follows from `W V = U M` and `Uᵀ W = M Vᵀ` that

        dU M − R dV = (1 − U Uᵀ) dW V,    M dVᵀ − dUᵀ R = Uᵀ dW (1 − V Vᵀ).

    Args:
      rest: x ↦ R x. rest_transposed: x ↦ x R.
    """
    u, core, vt = frame
    moved = matmul(u.T, images)

    def equations(change: tuple[Array, Array]) -> tuple[Array, Array]:
        du, dvt = change
        return matmul(du, core) - rest(dvt.T), matmul(core, dvt) - rest_transposed(du.T)

    solve = partial(_solve_with, spectrum)
    aims = images - matmul(u, moved), preimages - matmul(moved, vt)
    # With a diagonal core the equations are symmetric.
    du, dvt = lax.custom_linear_solve(equations, aims, solve, solve)
    return Frame(du, moved, dvt)


def _solve_with(
    spectrum: _Spectrum, equations: object, aims: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Between direction i of the rest and j of those kept, two equations in two unknowns."""
    kept, u, s, vt = spectrum
    left, right = aims
    below, beside = matmul(u.T, left), matmul(right, vt.T).T
    both = ratio(below + beside, kept[None, :] - s[:, None])
    apart = ratio(below - beside, kept[None, :] + s[:, None])
    # What lies outside of all singular vectors of the rest has no singular value there.
    return (
        matmul(u, (both + apart) / 2) + ratio(left - matmul(u, below), kept[None, :]),
        matmul(((both - apart) / 2).T, vt) + ratio(right - matmul(beside.T, vt), kept[:, None]),
    )


@jax.custom_jvp
def balanced(frame: Frame) -> tuple[Float[Array, "m k"], Float[Array, "k n"]]:
    """Factors A, B of a frame whose core is diagonal, with `AᵀA = BBᵀ = M`."""
    root = jnp.sqrt(jnp.diagonal(frame.core))
    return frame.u * root[None, :], root[:, None] * frame.vt


@balanced.defjvp
def _balanced_jvp(
    primals: tuple[Frame], tangents: tuple[Frame]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """With A = U X and B = Y Vᵀ, of all dX and dY with `dX Y + X dY = dM` the shortest.

    These are `K Yᵀ` and `Xᵀ K` for the K with `X Xᵀ K + K Yᵀ Y = dM`.
    """
    (frame,), (change,) = primals, tangents
    a, b = balanced(frame)
    x, y = matmul(frame.u.T, a), matmul(b, frame.vt.T)
    kept = lax.stop_gradient(jnp.diagonal(frame.core))

    def equation(k: Array) -> Array:
        return matmul(x, matmul(x.T, k)) + matmul(matmul(k, y.T), y)

    def solve(equation: object, aim: Array) -> Array:
        return ratio(aim, kept[:, None] + kept[None, :])

    k = lax.custom_linear_solve(equation, change.core, solve, solve)
    return (a, b), (
        matmul(change.u, x) + matmul(frame.u, matmul(k, y.T)),
        matmul(matmul(x.T, k), frame.vt) + matmul(y, change.vt),
    )
