"""Small decoders of PyTorch transformers, and the same weights here."""

from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.checkpoints import load_model

VOCABULARY, LENGTH = 61, 9
# Texts of 9, 5 and 1 tokens; where they are padded, other tokens stand, and would show if attended.
IDS = np.random.default_rng(1).integers(1, VOCABULARY, (3, LENGTH))
RIGHT = (np.arange(LENGTH) < np.array([9, 5, 1])[:, None]).astype(np.int32)
LEFT = RIGHT[:, ::-1].copy()
PLACES = np.tile(np.arange(LENGTH), (3, 1))
LEFT_PLACES = np.maximum(LEFT.cumsum(1) - 1, 0)
PADDINGS = {
    "none": (np.ones_like(RIGHT), PLACES),
    "right": (RIGHT, PLACES),
    "left": (LEFT, LEFT_PLACES),
    # Rotary embeddings look at distances alone, and would not show a shift that is forgotten. At
    # the end: the dynamic ones of PyTorch remember the farthest place.
    "scattered": (np.ones_like(RIGHT), np.random.default_rng(2).integers(0, 20, (3, LENGTH))),
}

GPT2 = {"vocab_size": VOCABULARY, "n_positions": 20, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 20,
}


def torch_model(name: str, **config: Any) -> Any:
    """`GPT2LMHeadModel` or the like, its weights far from the even attention of new ones."""
    import torch
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    # The plain attention: fused ones leave open what a place gives that sees nothing.
    model = kind(kind.config_class(**config, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def both(folder: Path, name: str, **config: Any) -> tuple[Any, Any]:
    """A model here and the same in PyTorch, by way of a folder that PyTorch writes."""
    theirs = torch_model(name, **config)
    theirs.save_pretrained(folder)
    return load_model(folder), theirs


def torch_outputs(theirs: Any, **given: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits and hidden states of PyTorch."""
    import torch

    inputs = {name: torch.tensor(array).long() for name, array in given.items()}
    with torch.no_grad():
        out = theirs(**inputs, output_hidden_states=True)
    return out.logits.numpy(), [x.numpy() for x in out.hidden_states]


def assert_same(jit: Any, ours: Any, theirs: Any, ids: np.ndarray = IDS) -> None:
    """Logits and all hidden states agree, at every place, however the texts are padded."""
    call = jit(lambda model, ids, mask, places: model.with_hidden(ids, mask, position_ids=places))
    for padding, (mask, places) in PADDINGS.items():
        logits, hidden = call(ours, ids, mask, places)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        expected, states = torch_outputs(theirs, **given)
        np.testing.assert_allclose(logits, expected, atol=1e-4, err_msg=padding)
        for found, state in zip(hidden, states, strict=True):
            np.testing.assert_allclose(found, state, atol=1e-4, err_msg=padding)
