"""LoRAP: ranks of attention, and channels that go by norms, against its formulas in float64."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.checkpoints.walk import Between
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.channels import kept_by_norms
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance import Moment
from lpaf_jax.importance.activations import layer_inputs
from lpaf_jax.models import Linear, layer_at
from lpaf_jax.ranks import Channels, choose_ranks
from tests.closed_forms import nearest
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

TOKENS = (np.random.default_rng(1).zipf(1.3, (24, LENGTH)) % VOCABULARY).astype(np.int32)
PLAN = Plan(
    "activations-diagonal",
    "metric",
    "values-first",
    params=0.6,
    channels="feed-forward",
    channels_by="norms",
)


def ranks_of(share: float, keys: int = 12) -> list[int | None]:
    """Of queries, keys, values and outputs of width 12."""
    sizes = {"q": (12, 12), "k": (12, keys), "v": (12, keys), "o": (12, 12)}
    places = {f"layers.{i}.self_attn.{n}_proj": sizes[n] for i in range(2) for n in sizes}
    shapes = places | {"layers.0.mlp.up_proj": (12, 24)}
    channels = {"layers.1.mlp.down_proj": Channels(24, 24)}
    found = choose_ranks("values-first", shapes, params=share, channels=channels)
    # All others as in `share`.
    assert found["layers.0.mlp.up_proj"] == int(share * 8)
    assert found["layers.1.mlp.down_proj"] == int(share * 24)
    ranks = [found[path] for path in places]
    assert ranks[:4] == ranks[4:]
    return ranks[:4]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # ¼ p d and ¾ p d
        (0.34, [1, 1, 3, 3]),
        (0.5, [1, 1, 4, 4]),
        # Values and outputs are whole: p d − ½ d
        (0.75, [3, 3, None, None]),
        (0.9, [4, 4, None, None]),
    ],
)
def test_ranks_where_all_of_attention_is_square(share: float, expected: list[int | None]) -> None:
    assert ranks_of(share) == expected


def test_ranks_where_heads_share_their_keys() -> None:
    # Half of both pairs, 108 and 36 of 432 numbers are a sixth and a half of 216.
    assert ranks_of(1 / 3 + 1e-9, keys=6) == [1, 1, 2, 3]
    assert ranks_of(0.75, keys=6) == [3, 2, None, None]


def test_a_matrix_for_queries_keys_and_values_is_refused(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(
        LpafError, match=r"h\.0\.attn\.c_attn holds queries, keys and values in one"
    ):
        compress_decoder(DecoderOnDisk(folder), TOKENS, PLAN, Store(tmp_path / "work"))


def given_to(model: Any, path: str) -> np.ndarray:
    _, inputs, _ = layer_inputs(model, [path], lambda: model(TOKENS))
    x = np.asarray(inputs[path], np.float64)
    return x.reshape(-1, x.shape[-1])


def test_the_first_block_is_that_of_the_formulas(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "llama", "llama")
    source, store = DecoderOnDisk(folder), Store(tmp_path / "work")
    cuts = {each.path: each for each in compress_decoder(source, TOKENS, PLAN, store).cuts}
    kept, model = store.block(0), load_model(folder, head="lm")
    assert kept is not None
    tensors, feed = kept[0], source.feed_forward(0)

    def kernel(path: str) -> np.ndarray:
        return np.asarray(layer_at(model, path).kernel[...], np.float64)

    def size_of_inputs(path: str) -> np.ndarray:
        return np.sqrt(np.mean(np.square(given_to(model, path)), axis=0))

    worth = size_of_inputs(feed.out) * np.linalg.norm(kernel(feed.out), axis=1)
    for path in feed.into:
        worth += np.linalg.norm(size_of_inputs(path)[:, None] * kernel(path), axis=0)
    gone, left = np.split(np.argsort(worth), [48 - int(0.6 * 48)])
    left.sort()
    for path in feed.into:
        np.testing.assert_array_equal(tensors[f"{path}.weight"].T, kernel(path)[:, left])
    np.testing.assert_array_equal(tensors[f"{feed.out}.weight"].T, kernel(feed.out)[left])
    x, w = given_to(model, feed.out), kernel(feed.out)
    lost = np.square(x[:, gone] @ w[gone]).sum() / np.square(x @ w).sum()
    assert cuts[feed.out].error == pytest.approx(lost, rel=1e-3)

    for name, share in (("q", 0.3), ("o", 0.9)):
        path = f"{source.prefix(0)}.self_attn.{name}_proj"
        w, rank = kernel(path), cuts[path].record["rank"]
        assert rank == int(share * w.size / sum(w.shape))
        product = tensors[f"{path}.down.weight"].T @ tensors[f"{path}.up.weight"].T
        best = nearest(w, rank, np.square(size_of_inputs(path)))
        np.testing.assert_allclose(product, best, atol=2e-3)


def test_the_smallest_hundredth_stays() -> None:
    random = np.random.default_rng(3)
    scale = np.arange(1, 301, dtype=np.float32)
    random.shuffle(scale)
    up, down = random.normal(size=(2, 300)), np.repeat(scale[:, None], 2, axis=1)
    dense = {"up": Linear(jnp.asarray(up), None), "down": Linear(jnp.asarray(down), None)}
    nothing = Moment(jnp.zeros((2, 2)), jnp.zeros(2), 1)
    one = Moment(jnp.eye(300), jnp.zeros(300), 1)
    kept, product = kept_by_norms(dense, Between(("up",), "down"), 100, nothing, one)
    assert set(scale[kept]) == {1, 2, 3, *range(204, 301)}
    np.testing.assert_array_equal(product[kept], down[kept])
    assert not np.delete(product, kept, axis=0).any()
