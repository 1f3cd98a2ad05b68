"""Runs the model in this folder with jax, numpy and safetensors: python run.py ID [ID ...]."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file


def load(folder: Path) -> Callable[..., np.ndarray]:
    """`forward(input_ids, attention_mask=None, token_type_ids=None) -> logits`.

    All are (batch, length). Each new shape is compiled once. A length beyond what the model reads
    is a ValueError.
    """
    limit = json.loads((folder / "config.json").read_text(encoding="utf-8"))["lpaf_positions"]
    program = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    weights = jax.device_put(load_file(folder / "weights.safetensors"))
    call = jax.jit(program.call)

    def forward(
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        token_type_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        ids = np.asarray(input_ids, np.int32)
        if ids.shape[1] > limit:
            raise ValueError(f"{ids.shape[1]} tokens exceed the {limit} that the model reads")
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        types = np.zeros_like(ids) if token_type_ids is None else token_type_ids
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return np.asarray(call(weights, {k: np.asarray(x, np.int32) for k, x in inputs.items()}))

    return forward


if __name__ == "__main__":
    ids = [int(word) for word in sys.argv[1:]]
    if not ids:
        sys.exit("usage: python run.py ID [ID ...], the token ids of one text")
    print(json.dumps(load(Path(__file__).parent)(np.array([ids]))[0].tolist()))
