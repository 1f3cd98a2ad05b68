"""What decoders share, in both families: the walk, the masks, the last token, narrow compute."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.linalg import LowRank
from lpaf_jax.models import (
    Gpt2Classifier,
    Gpt2Config,
    Gpt2LanguageModel,
    LlamaClassifier,
    LlamaConfig,
    LlamaLanguageModel,
    LowRankLinear,
    as_function,
    compressible_layers,
    layer_at,
    parameters,
    replace_layer,
    set_parameters,
)
from lpaf_jax.models.decoder import last_token, visible
from lpaf_jax.models.gpt2 import Gpt2Block
from lpaf_jax.models.initial import Initializer
from lpaf_jax.models.llama import LlamaBlock
from tests.decoders import GPT2, IDS, LEFT, LEFT_PLACES, LENGTH, LLAMA, PLACES, RIGHT
from tests.programs import equations

# All that a Llama may have: grouped queries, norms of heads, biases, a window in one layer.
QWEN3 = {
    "model_type": "qwen3",
    **LLAMA,
    "head_dim": 8,
    "attention_bias": True,
    "use_sliding_window": True,
    "sliding_window": 3,
    "layer_types": ["full_attention", "sliding_attention"],
    "tie_word_embeddings": True,
}
CONFIGS: dict[str, Any] = {
    "gpt2": Gpt2Config.from_json(
        {**GPT2, "scale_attn_by_inverse_layer_idx": True, "pad_token_id": 0}
    ),
    "llama": LlamaConfig.from_json({**QWEN3, "pad_token_id": 0}),
}
KINDS: dict[str, Any] = {
    "gpt2": (Gpt2LanguageModel, Gpt2Classifier, Gpt2Block),
    "llama": (LlamaLanguageModel, LlamaClassifier, LlamaBlock),
}
BATCH = {"input_ids": IDS, "attention_mask": RIGHT, "token_type_ids": np.zeros_like(IDS)}


def made(make: Any) -> Any:
    """A module with weights far from the even attention of new ones; nothing is drawn by JAX."""
    module = nnx.eval_shape(make)
    rng = np.random.default_rng(0)
    shapes = sorted((path, a.shape) for path, a in parameters(module).items())
    # Of vectors the norms' weights alone are not named so.
    norms = {path for path, shape in shapes if len(shape) == 1 and not path.endswith("bias")}
    set_parameters(module, {path: rng.normal(path in norms, 0.3, shape) for path, shape in shapes})
    return module


@pytest.fixture(params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> Any:
    """A language model."""
    return made(lambda: KINDS[family][0](CONFIGS[family], jax.random.key(0)))


def test_a_walk_by_blocks_that_are_made_alone(family, model, jit):
    """No more than one block needs to be at hand."""
    params, config = parameters(model), CONFIGS[family]
    place = "transformer.h" if family == "gpt2" else "model.layers"

    def alone(index: int) -> Any:
        block = made(lambda: KINDS[family][2](config, Initializer(jax.random.key(0)), index))
        start = f"{place}.{index}."
        own = {p.removeprefix(start): a for p, a in params.items() if p.startswith(start)}
        assert own.keys() == parameters(block).keys()
        set_parameters(block, own)
        return block

    @jit
    def walk(blocks: list[Any]) -> Any:
        body = model.body
        hidden = [body.embed(IDS, LEFT_PLACES)]
        context = body.context(LEFT, LEFT_PLACES)
        for block in blocks:
            hidden.append(block(hidden[-1], context))
        hidden[-1] = body.finish(hidden[-1])
        return model.head(hidden[-1]), hidden

    whole = jit(lambda m: m.with_hidden(IDS, LEFT, position_ids=LEFT_PLACES))(model)
    assert len(model.body.blocks) == 2
    for found, expected in zip(
        jax.tree.leaves(walk([alone(0), alone(1)])), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    swapped = walk([alone(1), alone(0)])[0]
    assert not np.allclose(swapped, whole[0], atol=1e-2)


def test_what_may_be_left_out(model, jit):
    call = jit(lambda m, *rest, **named: m(IDS, *rest, **named))
    plain = call(model)
    ones = np.ones_like(IDS)
    np.testing.assert_allclose(call(model, ones, ones, position_ids=PLACES), plain, atol=1e-5)
    assert not np.allclose(call(model, ones, ones, position_ids=PLACES[:, ::-1]), plain, atol=0.1)


def test_the_future_is_not_seen(model, jit):
    changed = IDS.copy()
    changed[:, 5:] = changed[:, 5:] % 60 + 1
    call = jit(lambda m, ids: m(ids))
    before, after = call(model, IDS), call(model, changed)
    np.testing.assert_allclose(before[:, :5], after[:, :5], atol=1e-5)
    assert not np.allclose(before[:, 5:], after[:, 5:], atol=1e-2)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
def test_visible_places(window):
    seen = visible(jnp.asarray(LEFT), window)
    for row, query, key in np.ndindex(3, LENGTH, LENGTH):
        near = window is None or query - key < window
        expected = key <= query and near and LEFT[row, key] == 1
        assert seen[row, query, key] == expected


def test_the_last_token():
    ids = np.array([[5, 6, 0, 0], [0, 0, 5, 6], [5, 0, 6, 0], [0, 0, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(last_token(ids, mask, 0), [1, 3, 2, 0])
    np.testing.assert_array_equal(last_token(ids, mask, 7), [3, 3, 3, 3])
    np.testing.assert_array_equal(last_token(ids, mask, None), [3, 3, 0, 0])


@pytest.mark.parametrize("head", [0, 1], ids=["lm", "classification"])
def test_gradients_with_a_row_of_padding_alone(family, head, jit):
    model = made(lambda: KINDS[family][head](CONFIGS[family], jax.random.key(0)))
    mask = RIGHT * np.array([1, 1, 0])[:, None]
    batch = {**BATCH, "input_ids": IDS * mask, "attention_mask": mask}
    forward = as_function(model)

    def loss(params: Any) -> Any:
        return jnp.sum(jnp.tanh(forward(params, {}, batch)))

    for path, slope in jit(jax.grad(loss))(parameters(model)).items():
        assert np.isfinite(slope).all(), path
        assert slope.any(), path


def test_bfloat16_is_near(model, jit):
    narrow, wide = (
        jit(as_function(model, hidden=True, dtype=dtype))(parameters(model), {}, BATCH)
        for dtype in (jnp.bfloat16, None)
    )
    assert narrow.logits.dtype == narrow.hidden.dtype == jnp.float32
    real = RIGHT > 0
    for found, exact in zip(narrow.hidden, wide.hidden, strict=True):
        error = np.linalg.norm((found - exact)[real]) / np.linalg.norm(exact[real])
        assert 1e-4 < error < 0.03
    error = np.linalg.norm(narrow.logits - wide.logits) / np.linalg.norm(wide.logits)
    assert 1e-4 < error < 0.05


def test_what_is_narrow_and_what_is_not(model):
    forward = as_function(model, dtype=jnp.bfloat16)
    program = equations(lambda params: forward(params, {}, BATCH), parameters(model))
    products = [e for e in program if e.primitive.name == "dot_general"]
    assert {v.aval.dtype.name for e in products for v in e.invars} == {"bfloat16"}
    # The scores of attention leave their product unrounded: one a block.
    scores = [e for e in products if e.outvars[0].aval.dtype == jnp.float32]
    assert len(scores) == 2
    for name in ("exp", "rsqrt", "reduce_max", "cos", "sin"):
        kinds = {v.aval.dtype.name for e in program if e.primitive.name == name for v in e.invars}
        assert kinds <= {"float32"}, name


def test_factors_of_full_rank_leave_the_logits(family, model, jit):
    call = jit(lambda m: m(IDS, RIGHT))
    before = call(model)
    layers = compressible_layers(parameters(model))
    assert len(layers) == 2 * {"gpt2": 4, "llama": 7}[family]
    for path in layers:
        dense = layer_at(model, path)
        u, s, vt = np.linalg.svd(dense.kernel[...], full_matrices=False)
        bias = None if dense.bias is None else dense.bias[...]
        factors = LowRank(jnp.asarray(u * s), jnp.asarray(vt))
        replace_layer(model, path, LowRankLinear(factors, bias))
    assert compressible_layers(parameters(model)) == layers
    np.testing.assert_allclose(call(model), before, atol=1e-4)


def test_which_matrices_are_compressed(family, model):
    within = {
        "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        "llama": (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        ),
    }[family]
    place = "transformer.h" if family == "gpt2" else "model.layers"
    expected = {f"{place}.{i}.{name}" for i in range(2) for name in within}
    assert set(compressible_layers(parameters(model))) == expected
