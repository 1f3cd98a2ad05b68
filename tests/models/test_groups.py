"""Heads and channels of a model: which there are, how many are left, and what is left of it."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from lpaf_jax.core.errors import SettingError
from lpaf_jax.models import as_function, count_parameters, fixed_arrays, parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.models.groups import add_gates, counts_left, drop_groups, groups_of, share_left
from lpaf_jax.models.lora import add_adapters

BERT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
}
# Two heads of keys and values, each for two of queries.
LLAMA = BERT | {"num_key_value_heads": 2, "head_dim": 8}
DISTILBERT = {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
GPT2 = {"vocab_size": 61, "n_positions": 20, "n_embd": 32, "n_layer": 2, "n_head": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BERT,
    "roberta": BERT | {"pad_token_id": 1},
    "distilbert": DISTILBERT,
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gpt2": GPT2,
}


def make(family: str) -> Any:
    """A model of that family with weights and biases that are far from 0."""
    kind = FAMILIES[family]
    config = kind.config(CONFIGS[family] | {"model_type": family})
    model = next(iter(kind.heads.values()))(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf.set_value(leaf.get_value() + 0.3 * rng.standard_normal(leaf.get_value().shape))
    return model


def outputs(model: Any, params: dict[str, Any]) -> np.ndarray:
    ids = np.random.default_rng(1).integers(2, 60, (2, 9)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return np.asarray(as_function(model)(params, fixed_arrays(model), batch))


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_dropped_is_what_a_gate_of_0_takes_out(family: str) -> None:
    model, gated = make(family), make(family)
    groups = groups_of(model)
    kept = {}
    rng = np.random.default_rng(2)
    for each in groups:
        kept[each.out] = rng.permutation(each.total) < each.total // 2
    add_adapters(gated, 2)
    add_gates(gated, groups)
    params = parameters(gated)
    assert {path for path in params if path.endswith("gate")} == {
        f"{each.out}.lora_gate" for each in groups
    }
    whole = outputs(gated, params)
    np.testing.assert_allclose(whole, outputs(model, parameters(model)), atol=1e-5)
    params |= {f"{path}.lora_gate": mask.astype(np.float32) for path, mask in kept.items()}
    expected = outputs(gated, params)
    assert np.abs(expected - whole).max() > 0.1
    left = share_left(model, groups, {path: int(mask.sum()) for path, mask in kept.items()})
    before = count_parameters(parameters(model))["encoder"]
    drop_groups(model, groups, kept)
    np.testing.assert_allclose(outputs(model, parameters(model)), expected, atol=1e-4)
    after = count_parameters(parameters(model))["encoder"]
    assert after / before == pytest.approx(left)


def test_groups_are_named_by_family() -> None:
    """Of GPT-2 there are no heads: a matrix holds queries, keys and values together."""
    for family, config in CONFIGS.items():
        found = [(each.kind, each.total) for each in groups_of(make(family))]
        heads = config.get("num_key_value_heads", 4)
        block = [("heads", heads), ("channels", 48)]
        expected = 2 * ([("channels", 128)] if family == "gpt2" else block)
        assert sorted(found) == sorted(expected), family


def test_what_config_json_then_says() -> None:
    """Channels have a word, heads where it names their width; if one has none, no word is said."""
    words = {}
    for family, heads in (("llama", 1), ("bert", 2), ("bert", 4), ("gpt2", 0)):
        model = make(family)
        groups = groups_of(model)
        counts = {"heads": heads, "channels": 40}
        drop_groups(model, groups, {g.out: np.arange(g.total) < counts[g.kind] for g in groups})
        words[family, heads] = dict(model.resized)
    assert words["llama", 1] == {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 40,
    }
    assert words["bert", 2] == {}
    assert words["bert", 4] == {"intermediate_size": 40}
    assert words["gpt2", 0] == {"n_inner": 40}


@pytest.mark.parametrize(
    ("family", "share"),
    [(family, share) for family in ("bert", "llama", "gpt2") for share in (1.0, 0.7, 0.5)]
    + [("bert", 0.25), ("llama", 0.35)],
)
def test_the_share_is_met_to_a_channel_of_each_block(family: str, share: float) -> None:
    model = make(family)
    groups = groups_of(model)
    left = counts_left(model, groups, share)
    assert len({(g.kind, left[g.out]) for g in groups}) == len({g.kind for g in groups})
    reached = share_left(model, groups, left)
    total = count_parameters(parameters(model))["encoder"]
    channel = sum(
        x.size // x.shape[0] * (3 if family == "llama" else 2)
        for path, x in parameters(model).items()
        if any(path == f"{g.out}.kernel" for g in groups if g.kind == "channels")
    )
    assert share - channel / total < reached <= share + 1e-12


def test_heads_give_way_where_channels_cannot() -> None:
    model = make("bert")
    groups = groups_of(model)
    alone = counts_left(model, groups, 0.6, heads=False)
    assert {alone[g.out] for g in groups if g.kind == "heads"} == {4}
    with pytest.raises(SettingError, match="drop heads, too"):
        counts_left(model, groups, 0.5, heads=False)
    # A sixteenth is less than a head of each block, which is the least there is.
    with pytest.raises(SettingError, match=r"a single channel in .* 15\.\d%"):
        counts_left(model, groups, 1 / 16)
