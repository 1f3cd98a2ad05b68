"""Encoders of PyTorch's transformers, tiny and with weights that tell, and ours with the same."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.models import parameters

PAD, LENGTH, POSITIONS = 1, 9, 20
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.125,
    "attention_probs_dropout_prob": 0.25,
    "classifier_dropout": 0.5,
}
_DISTILBERT = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "dropout": 0.125,
    "attention_dropout": 0.25,
    "seq_classif_dropout": 0.5,
    "qa_dropout": 0.375,
}
_FAMILIES: dict[str, Any] = {
    "bert": ("Bert", _BERT),
    "roberta": ("Roberta", _BERT | {"layer_norm_eps": 0.1}),
    "distilbert": ("DistilBert", _DISTILBERT),
}
_HEADS = {
    "classification": ("SequenceClassification", {"num_labels": 3}),
    "span": ("QuestionAnswering", {}),
}
CASES = [(family, head) for family in _FAMILIES for head in _HEADS]


def torch_model(family: str, head: str, **changes: Any) -> Any:
    """A model of PyTorch, far from the even attention of freshly drawn weights."""
    name, shape = _FAMILIES[family]
    suffix, labels = _HEADS[head]
    common = {"vocab_size": 61, "max_position_embeddings": POSITIONS, "pad_token_id": PAD}
    config = getattr(transformers, f"{name}Config")(**(common | shape | labels | changes))
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}For{suffix}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def twin(theirs: Any, folder: Path) -> Any:
    """Our model of what PyTorch writes into `folder`, which has nothing that is left out."""
    theirs.save_pretrained(folder)
    ours = load_model(folder)
    assert len(parameters(ours)) == len(load_file(folder / "model.safetensors"))
    return ours


def torch_outputs(theirs: Any, batch: dict[str, Any]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logits, those of spans as (batch, length, 2), and hidden states."""
    inputs = {name: torch.tensor(np.asarray(array)).long() for name, array in batch.items()}
    if theirs.config.model_type == "distilbert":
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        out = theirs(**inputs, output_hidden_states=True)
    logits = out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], -1)
    return logits.numpy(), [state.numpy() for state in out.hidden_states]


def torch_maps(theirs: Any, batch: dict[str, Any]) -> list[np.ndarray]:
    """Attention of every layer, (batch, heads, queries, keys)."""
    inputs = {name: torch.tensor(np.asarray(array)).long() for name, array in batch.items()}
    if theirs.config.model_type == "distilbert":
        inputs.pop("token_type_ids", None)
    usual = theirs.config._attn_implementation
    theirs.set_attn_implementation("eager")  # fused ones have none to show
    try:
        with torch.no_grad():
            return [x.numpy() for x in theirs(**inputs, output_attentions=True).attentions]
    finally:
        theirs.set_attn_implementation(usual)


def sentences(*, left: bool = False) -> dict[str, np.ndarray]:
    """Pairs of 9, 5 and 1 tokens, padded."""
    rng = np.random.default_rng(1)
    place, lengths = np.arange(LENGTH), np.array([LENGTH, 5, 1])[:, None]
    if left:
        place = place - LENGTH + lengths
    mask = (place >= 0) & (place < lengths)
    ids = np.where(mask, rng.integers(PAD + 1, 61, mask.shape), PAD)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask & (place % 3 > 0)}
    return {name: array.astype(np.int32) for name, array in batch.items()}


def positions() -> np.ndarray:
    """Places out of order, with repeats, up to the last."""
    found = np.random.default_rng(2).integers(0, POSITIONS, (3, LENGTH)).astype(np.int32)
    found[0, :2] = POSITIONS - 1, 0
    return found
