"""Decoders whose matrices are factorized in part, by one kind and by two."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.factors import KINDS, register_kind
from lpaf_jax.models import compressible, layer_at, parameters, replace_layer
from tests.factors.folders import FAMILIES, logits, write_low_rank
from tests.factors.scaled import Scaled


@pytest.fixture(params=FAMILIES)
def low_rank(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of factors."""
    return write_low_rank(tmp_path, request.param)


@pytest.fixture(scope="session")
def scaled() -> Scaled:
    return Scaled()


@pytest.fixture
def second_kind(scaled: Scaled) -> Iterator[Scaled]:
    """`Scaled`, known for the time of a test."""
    register_kind(scaled)
    yield scaled
    KINDS._choices.pop(scaled.name)


@pytest.fixture
def write_both(second_kind: Scaled) -> Callable[[Path, str], Path]:
    """A folder with dense matrices, low-rank ones and those of the second kind."""

    def write(place: Path, family: str) -> Path:
        source = write_low_rank(place, family)
        model = load_model(source)
        rest = [path for path in compressible(parameters(model)) if path.endswith(".kernel")]
        for i, path in enumerate(rest[:-1]):
            place_of = path.removesuffix(".kernel")
            dense = layer_at(model, place_of)
            kernel = dense.kernel[...]
            scale = jnp.asarray(np.random.default_rng(i).uniform(0.5, 2, len(kernel)), jnp.float32)
            bias = None if dense.bias is None else dense.bias[...]
            layer = second_kind.layer({"kernel": kernel, "row_scale": scale}, bias, {})
            replace_layer(model, place_of, layer)
        out = place / f"{family}_both"
        save_model(model, out, source=source, label_names=None, card="# Card\n")
        np.save(out / "expected.npy", logits(model))
        return out

    return write
