"""AA-SVD block by block: each layer against what it was given, and made, in the dense model."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.core.errors import SettingError
from lpaf_jax.factorization import to_factors
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance.activations import layer_inputs
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import layer_at
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.solvers import Solution
from tests.closed_forms import nearest
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

RANDOM = np.random.default_rng(1)
TOKENS = (RANDOM.zipf(1.3, (24, LENGTH)) % VOCABULARY).astype(np.int32)
PLAN = Plan("shifted", "shifted", params=0.6)
# In the order in which a block calls them; those of a group have one input.
GROUPS = {
    "llama": [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ],
    "gpt2": [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_fc"], ["mlp.c_proj"]],
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("models") / request.param, request.param)


def given_to(model: Any, places: list[str]) -> dict[str, np.ndarray]:
    """What goes into layers of a whole model, a row a token."""
    _, inputs, names = layer_inputs(model, places, lambda: model(TOKENS))
    wide = {first: np.asarray(x, np.float64) for first, x in inputs.items()}
    return {place: (x := wide[names[place]]).reshape(-1, x.shape[-1]) for place in places}


def shifted(w: Any, x: np.ndarray, given: np.ndarray, rank: int) -> np.ndarray:
    """The product AB by least squares, the rows of the penalty stacked below the data."""
    w = np.asarray(w, np.float64)
    strengths = np.sqrt(0.1 * np.sum(np.square(given), axis=0))
    rows = np.concatenate([given, np.diag(strengths)])
    aim = np.concatenate([x @ w, strengths[:, None] * w])
    target = np.linalg.lstsq(rows, aim, rcond=None)[0]
    return nearest(target, rank, given.T @ given / len(given))


@pytest.fixture(scope="module")
def cut(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("cut"))
    compress_decoder(DecoderOnDisk(folder), TOKENS, PLAN, store)
    return store


def test_what_was_lost_before_is_mended_in_every_layer_once(folder: Path, cut: Store) -> None:
    """The layers before it in its own block are then compressed: none mends what they did."""
    source = DecoderOnDisk(folder)
    dense, model = (load_model(folder, head="lm") for _ in range(2))
    for index in range(2):
        kept = cut.block(index)
        assert kept is not None
        tensors, _ = kept
        for group in GROUPS[folder.name]:
            places = [f"{source.prefix(index)}.{place}" for place in group]
            x, given = given_to(dense, places), given_to(model, places)
            found = {}
            for place in places:
                a, b = (tensors[f"{place}.{name}.weight"].T for name in ("down", "up"))
                wanted = shifted(layer_at(dense, place).kernel[...], x[place], given[place], len(b))
                np.testing.assert_allclose(a @ b, wanted, atol=2e-3, err_msg=place)
                pair = LowRank(jnp.asarray(a), jnp.asarray(b))
                found[f"{place}.kernel"] = Solution(pair, None)
            to_factors(model, found)


def test_a_walk_that_was_stopped_goes_on_with_both_streams(
    folder: Path, cut: Store, tmp_path: Path
) -> None:
    again, kept = Store(tmp_path), cut.block(0)
    assert kept is not None
    again.keep_block(0, *kept)
    compress_decoder(DecoderOnDisk(folder), TOKENS, PLAN, again)
    first, second = cut.block(1), again.block(1)
    assert first is not None
    assert second is not None
    for name, value in first[0].items():
        np.testing.assert_allclose(second[0][name], value, atol=1e-6, err_msg=name)


def test_with_a_task_nothing_is_cut_block_by_block(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is factorized block by block"):
        make_settings("minilm", task="rotten_tomatoes", recipe="aa-svd", out=tmp_path)
