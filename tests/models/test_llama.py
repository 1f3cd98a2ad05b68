"""Parity of Llama, Mistral, Qwen2 and Qwen3 with the PyTorch models of transformers."""

import json
from typing import Any

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import LlamaConfig, LlamaLanguageModel
from tests.decoders import (
    IDS,
    LEFT,
    LEFT_PLACES,
    LLAMA,
    PLACES,
    RIGHT,
    assert_same,
    both,
    torch_outputs,
)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "groups": ("Llama", {}),
    "no groups, tied": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "one group, gelu": ("Llama", {"num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1}),
    "wide heads": ("Llama", {"head_dim": 12}),
    "window": ("Mistral", {"sliding_window": 4}),
    "no window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in the second layer": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, window in the first layer": (
        "Qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}

ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 300.0},
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
    # Texts of 9 tokens are longer than the model was trained for.
    "dynamic": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 5,
        "rope_theta": 10.0,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 5,
        "beta_fast": 0.5,
        "beta_slow": 0.1,
        "rope_theta": 10.0,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_language_models(tmp_path, jit, variant):
    pytest.importorskip("torch")
    name, changes = VARIANTS[variant]
    ours, theirs = both(tmp_path, f"{name}ForCausalLM", **{**LLAMA, **changes})
    assert type(ours) is LlamaLanguageModel
    assert (ours.lm_head is None) == changes.get("tie_word_embeddings", False)
    assert_same(jit, ours, theirs)


@pytest.mark.parametrize("kind", ROPES)
def test_rotary_embeddings(tmp_path, jit, kind):
    pytest.importorskip("torch")
    changes = {"rope_parameters": dict(ROPES[kind]), "num_hidden_layers": 1}
    if kind == "dynamic":
        changes["max_position_embeddings"] = 6
    ours, theirs = both(tmp_path, "LlamaForCausalLM", **{**LLAMA, **changes})
    assert_same(jit, ours, theirs)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_classifiers(tmp_path, jit, name):
    pytest.importorskip("torch")
    shape = {**LLAMA, "num_hidden_layers": 1, "num_labels": 3, "pad_token_id": 0}
    ours, theirs = both(tmp_path, f"{name}ForSequenceClassification", **shape)
    call = jit(lambda ids, mask, places: ours(ids, mask, position_ids=places))
    for mask, places in ((RIGHT, PLACES), (LEFT, LEFT_PLACES)):
        given = {"input_ids": IDS * mask, "attention_mask": mask, "position_ids": places}
        expected = torch_outputs(theirs, **given)[0]
        assert expected.shape == (3, 3)
        np.testing.assert_allclose(call(*given.values()), expected, atol=1e-4)


def config_json(tmp_path: Any, name: str, **changes: Any) -> dict[str, Any]:
    """What transformers writes."""
    import transformers

    getattr(transformers, name)(**{**LLAMA, **changes}).save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(("name", "kind"), [("Llama", "llama"), ("Mistral", "mistral")])
def test_fields_of_older_files(tmp_path, name, kind):
    """Before transformers 5, rope_theta stood by itself, and kinds were called `type`."""
    new = config_json(tmp_path, f"{name}Config", rope_parameters=dict(ROPES["llama3"]))
    old = {k: v for k, v in new.items() if k not in ("rope_parameters", "head_dim")}
    old["rope_theta"] = 10.0
    old["rope_scaling"] = {**ROPES["llama3"], "type": "llama3"}
    del old["rope_scaling"]["rope_type"], old["rope_scaling"]["rope_theta"]
    assert LlamaConfig.from_json(old) == LlamaConfig.from_json(new)
    default = LlamaConfig.from_json({**old, "rope_scaling": None})
    assert default.rotary.frequencies == pytest.approx([10 ** (-i / 4) for i in range(4)])


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_what_a_file_leaves_out(tmp_path, name):
    """Older files hold no fields that have their default, which differs among the four."""
    optional = ("num_key_value_heads", "max_position_embeddings", "sliding_window", "head_dim")
    optional += ("rms_norm_eps", "hidden_act", "tie_word_embeddings", "max_window_layers")
    shape = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 30}
    import transformers

    kind = getattr(transformers, f"{name}Config")
    kind(**shape, use_sliding_window=True).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    without = {k: v for k, v in values.items() if k not in (*optional, "layer_types")}
    assert LlamaConfig.from_json(without) == LlamaConfig.from_json(values)


def test_a_factorized_folder_names_its_family(tmp_path):
    values = config_json(tmp_path, "Qwen3Config")
    factorized = {**values, "model_type": "lpaf_qwen3"}
    assert LlamaConfig.from_json(factorized) == LlamaConfig.from_json(values)


BASE = {"model_type": "qwen3", **LLAMA}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not one of llama, mistral"),
        ({"model_type": "llama", "hidden_size": None}, "not a Llama configuration"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"hidden_act": "swish2"}, "'swish2' is not one of"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention'"),
        ({"layer_types": ["full_attention"]}, "1 layer_types for 2 layers"),
        (
            {"layer_types": ["sliding_attention"] * 2},
            "sliding windows, but no sliding window is in use",
        ),
        ({"rope_scaling": {"type": "longrope"}}, "'longrope' is not one of default, linear"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'linear' needs factor"),
        ({"rope_parameters": {"full_attention": {}}}, "differ between layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_variants_that_are_not_built(changes, message):
    LlamaConfig.from_json(BASE)
    with pytest.raises(LpafError, match=message):
        LlamaConfig.from_json({**BASE, **changes})


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_a_missing_field(name):
    with pytest.raises(LpafError, match=name):
        LlamaConfig.from_json({k: v for k, v in BASE.items() if k != name})
