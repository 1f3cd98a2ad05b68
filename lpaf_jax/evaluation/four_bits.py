"""A model with its matrices rounded to four bits: what any other compression has to beat."""

from collections.abc import Callable

import numpy as np

from lpaf_jax.linalg import nf4, nf4_bytes, nf4_dense
from lpaf_jax.models import compressible
from lpaf_jax.models.functional import Params

FLOAT32 = np.dtype(np.float32)


def in_nf4(
    params: Params, stored: Callable[[str], np.dtype] = lambda path: FLOAT32
) -> tuple[Params, int]:
    """The parameters with every compressible matrix, or every factor of one, rounded to NF4.

    Embeddings, norms, biases and the head stay as they are, as in QLoRA.

    Args:
        params: of a model, by path.
        stored: the dtype of a parameter in the model's file.

    Returns:
        parameters of the same shapes, and how many bytes fewer they take.
    """
    matrices = compressible(params).items()
    rounded = {path: nf4_dense(nf4(x), x.shape, x.dtype) for path, x in matrices}
    saved = sum(x.size * stored(path).itemsize - nf4_bytes(x.shape) for path, x in matrices)
    return {**params, **rounded}, saved
