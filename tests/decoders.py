"""Small decoders of PyTorch transformers, and the same weights here."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lpaf_jax.models import parameters, set_parameters
from lpaf_jax.models.checkpoint import file_name
from lpaf_jax.models.gpt2 import Gpt2Classifier, Gpt2Config, Gpt2LanguageModel
from lpaf_jax.models.llama import LlamaClassifier, LlamaConfig, LlamaLanguageModel

VOCABULARY, LENGTH, PAD = 61, 9, 0
IDS = np.random.default_rng(1).integers(1, VOCABULARY, (3, LENGTH))
RIGHT = (np.arange(LENGTH) < np.array([9, 5, 1])[:, None]).astype(np.int32)
LEFT = RIGHT[:, ::-1].copy()
LEFT_PLACES = np.maximum(LEFT.cumsum(1) - 1, 0)

GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 20,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 20,
}


def torch_model(name: str, config: dict[str, Any]) -> Any:
    """`GPT2LMHeadModel` or the like, its weights far from the even attention of new ones."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    # The plain attention: the fused one leaves open what a place gives that sees nothing.
    made = kind.config_class(**config, attn_implementation="eager")
    model = kind(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def same_here(theirs: Any, folder: Path) -> Any:
    """The model of `theirs` in this library."""
    theirs.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    language = "Causal" in type(theirs).__name__ or "LMHead" in type(theirs).__name__
    if values["model_type"] == "gpt2":
        kinds, config = (Gpt2Classifier, Gpt2LanguageModel), Gpt2Config.from_json(values)
    else:
        kinds, config = (LlamaClassifier, LlamaLanguageModel), LlamaConfig.from_json(values)
    model = kinds[language](config, jax.random.key(3))
    params, stored = parameters(model), theirs.state_dict()
    found = {}
    for path in params:
        value = stored[file_name(path, params)].numpy()
        as_stored = ".c_" in path
        found[path] = jnp.asarray(
            value.T if path.endswith(".kernel") and not as_stored else value
        )
    set_parameters(model, found)
    return model


def torch_outputs(
    theirs: Any, ids: np.ndarray, mask: np.ndarray | None, places: np.ndarray | None = None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits and hidden states of PyTorch."""
    import torch

    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
    inputs = {name: torch.tensor(a).long() for name, a in given.items() if a is not None}
    with torch.no_grad():
        out = theirs(**inputs, output_hidden_states=True)
    return out.logits.numpy(), [x.numpy() for x in out.hidden_states]


def assert_same(
    ours: Any, theirs: Any, ids: np.ndarray, mask: Any = None, places: Any = None, jit: Any = None
) -> None:
    """Logits and all hidden states agree to 1e-4, at every place."""
    ours_call = (jit or jax.jit)(lambda m, *a: m.with_hidden(*a[:2], position_ids=a[2]))
    logits, hidden = ours_call(ours, ids, mask, places)
    expected, states = torch_outputs(theirs, ids, mask, places)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    for found, state in zip(hidden, states, strict=True):
        np.testing.assert_allclose(found, state, atol=1e-4)
