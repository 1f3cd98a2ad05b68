"""Angles against those of transformers, at places far out in a text."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.models.rotary import Rotary, rotate

LONG = {"original_max_position_embeddings": 256, "rope_theta": 500.0}
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        **LONG,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, **LONG},
    "yarn, uncut": {"rope_type": "yarn", "factor": 4.0, "truncate": False, **LONG},
    "yarn, weighted": {
        "rope_type": "yarn",
        "factor": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "beta_fast": 16,
        "beta_slow": 2,
        **LONG,
    },
    "yarn, scaled": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8, **LONG},
    "yarn, of the lengths": {"rope_type": "yarn", "factor": None, **LONG},
}


@pytest.mark.parametrize("kind", KINDS)
def test_angles(kind):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    head_dim, positions = 32, 1024
    made = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=positions,
        rope_parameters=dict(KINDS[kind]),
    )
    places = np.array([[0, 1, 255, 256, 1023], [5, 2, 2, 1500, 7]])
    cos, sin = LlamaRotaryEmbedding(made)(torch.zeros(1), torch.tensor(places))
    rotary = Rotary.from_json({"rope_parameters": KINDS[kind]}, head_dim, positions)
    found = rotary.turns(jnp.asarray(places))
    # An ulp of a frequency moves an angle of 1500 by up to 1e-4.
    exact = 2e-6 if kind in ("default", "linear") else 1e-4
    for ours, theirs in zip(found, (cos, sin), strict=True):
        np.testing.assert_allclose(ours, theirs[..., : head_dim // 2].numpy(), atol=exact)


def test_no_two_kinds_are_alike():
    made = [Rotary.from_json({"rope_parameters": kind}, 32, 1024) for kind in KINDS.values()]
    unlike = set(made)
    assert len(unlike) == len(made) - 1  # the lengths tell the factor that yarn is given
    frequencies = {rotary.frequencies for rotary in made}
    assert len(frequencies) == 6


def test_dynamic_is_default_within_its_reach():
    dynamic, default = (
        Rotary.from_json({"rope_parameters": KINDS[kind]}, 32, 1024)
        for kind in ("dynamic", "default")
    )
    places = jnp.arange(1024)[None]
    np.testing.assert_array_equal(dynamic.turns(places), default.turns(places))
    assert not np.allclose(dynamic.turns(places + 1), default.turns(places + 1))


def test_products_hang_on_distances_alone():
    rng = np.random.default_rng(0)
    rotary = Rotary.from_json({}, 8, 64)
    x, y = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(at: int, to: int) -> float:
        turned = (rotate(z, *rotary.turns(jnp.array([[i]]))) for z, i in ((x, at), (y, to)))
        return float(jnp.vdot(*turned))

    assert product(3, 5) == pytest.approx(product(40, 42), abs=1e-5)
    assert product(3, 5) != pytest.approx(product(3, 6), abs=1e-2)


def test_a_pair_is_turned_in_its_plane():
    """One pair by hand: elements 0 and 2 of four, by an angle of 3 radians."""
    cos, sin = Rotary((1.0, 0.0)).turns(jnp.array([[3]]))
    turned = rotate(jnp.array([[[[1.0, 5.0, 2.0, 6.0]]]]), cos, sin)[0, 0, 0]
    c, s = np.cos(3), np.sin(3)
    np.testing.assert_allclose(turned, [c - 2 * s, 5, s + 2 * c, 6], rtol=1e-6)


def test_narrow_vectors_are_turned_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, 8)), jnp.bfloat16)
    turns = Rotary.from_json({}, 8, 64).turns(jnp.arange(60, 65)[None])
    found, exact = rotate(x, *turns), rotate(x.astype(jnp.float32), *turns)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
