"""Decoders whose matrices are factorized in part, and what is asked of them."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.factorization import to_factors
from lpaf_jax.factors import FIELDS
from lpaf_jax.linalg import svd
from lpaf_jax.models import compressible, parameters
from lpaf_jax.solvers import Solution
from tests.tiny_decoder import VOCABULARY, write_decoder

IDS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 7))
FAMILIES = ("gpt2", "llama")


def logits(model: Any, ids: np.ndarray = IDS) -> np.ndarray:
    quick = {"xla_backend_optimization_level": 0}
    return np.asarray(jax.jit(lambda x: model(x), compiler_options=quick)(jnp.asarray(ids)))


def twin_logits(folder: Path) -> np.ndarray:
    torch = pytest.importorskip("torch")
    from lpaf_jax.checkpoints.torch_twin import torch_twin

    with torch.no_grad():
        found: np.ndarray = torch_twin(folder)(torch.tensor(IDS)).logits.numpy()
    return found


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def with_config(folder: Path, **changes: Any) -> Path:
    """Rewrite config.json: None takes a field away."""
    values = {k: v for k, v in (config_of(folder) | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def as_before(folder: Path) -> Path:
    """Let the folder say ranks by path, as folders did until there was more than one kind."""
    records = config_of(folder)[FIELDS[0]]
    ranks = {path: record["rank"] for path, record in records.items()}
    return with_config(folder, **{FIELDS[0]: None, FIELDS[1]: ranks})


def factorize(model: Any) -> None:
    """Two thirds of the matrices at rank 3, 4, ..., the rest dense."""
    matrices = list(compressible(parameters(model)).items())
    chosen = [pair for i, pair in enumerate(matrices) if i % 3]
    to_factors(model, {path: Solution(svd(w, 3 + i)) for i, (path, w) in enumerate(chosen)})


def write_low_rank(place: Path, family: str) -> Path:
    dense = write_decoder(place / f"{family}_dense", family)
    model = load_model(dense)
    factorize(model)
    save_model(model, place / family, source=dense, label_names=None, card="# Card\n")
    return place / family
