"""Cut the feed-forward layers of one block of a decoder to fewer channels."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax import Array

from lpaf_jax.checkpoints.walk import FeedForward
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import SlicedLinear
from lpaf_jax.importance import Moment
from lpaf_jax.linalg import Elimination, eliminate_channels, regressed
from lpaf_jax.models import layer_at, replace_layer

# Share of what a channel is worth that holds it where it is.
_RIDGE = 0.01


def elimination(w: Array, moment: Moment, right: Array | None) -> Elimination:
    """In which order the channels that a layer takes go, and what each adds to the loss."""
    return eliminate_channels(w, moment.second, right, ridge=_RIDGE)


def kept_channels(w: Array, count: int, moment: Moment, right: Array | None) -> tuple[Array, Array]:
    """Which channels are left, and the matrix that takes them, with rows of zeros for the others.

    Those that go are chosen by `eliminate_channels`. The others make up for them as well as they
    can, `argmin_T E‖x W − x̂_S T‖²`, x̂_S those that are left (see `regressed`).

    Args:
        w: of the layer that takes the channels.
        count: how many are left.
        moment: of what goes into that layer. right: R, of the gradients at what comes out of it.
    """
    order = elimination(w, moment, right).order
    kept = jnp.sort(order[len(w) - count :])
    chosen = jnp.zeros(len(w), w.dtype).at[kept].set(1)
    second = chosen[:, None] * moment.second * chosen[None, :]
    if moment.cross is None:
        product = regressed(w, second, chosen[:, None] * moment.second, _RIDGE)
    else:
        product = regressed(w, second, chosen[:, None] * moment.cross)
    return kept, chosen[:, None] * product


def slice_block(
    block: nnx.Module,
    prefix: str,
    feed: FeedForward,
    count: int,
    moment: Moment,
    right: Array | None,
    rounded: Callable[[str, Array], Array],
) -> Array:
    """Put layers of fewer channels into a block; the matrix that takes them, zeros for the others.

    Args:
        block: whose feed-forward layers are dense.
        prefix: of the paths in it.
        feed: of the block, by full paths.
        count, moment, right: see `kept_channels`.
        rounded: `(path, kernel) -> kernel` as it will be stored.

    Raises:
        LpafError: what comes out is not finite.
    """
    layer = layer_at(block, feed.out.removeprefix(prefix))
    kept, product = kept_channels(layer.kernel[...], count, moment, right)
    product = rounded(feed.out, product)
    if not jnp.isfinite(product).all():
        raise LpafError(f"{feed.out}: what is left of it is not finite as the file stores it")
    bias = None if layer.bias is None else layer.bias[...]
    replace_layer(block, feed.out.removeprefix(prefix), SlicedLinear(product[kept], bias))
    for path in feed.into:
        layer = layer_at(block, path.removeprefix(prefix))
        kernel = rounded(path, layer.kernel[...][:, kept])
        bias = None if layer.bias is None else layer.bias[...][kept]
        replace_layer(block, path.removeprefix(prefix), SlicedLinear(kernel, bias))
    return product
