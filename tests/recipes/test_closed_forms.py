"""What every recipe with a closed form makes of each matrix, against numpy's float64."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.factorization import factorize
from lpaf_jax.importance import Subject, activation_moments, fisher_scores, gradient_moments
from lpaf_jax.models import as_function, compressible, parameters
from lpaf_jax.recipes import RECIPES, make_recipe
from lpaf_jax.stages import Factorize
from lpaf_jax.train import CLASSIFICATION, LANGUAGE
from tests.closed_forms import Statistics, answer
from tests.tiny import WORDS, Tiny
from tests.tiny_decoder import VOCABULARY, write_decoder

# What is cut in a walk alone, in tests/factorization: after it is pruned in test_pruned_first.py,
# with ranks that one matrix for queries, keys and values does not have in test_lorap.py. That of
# token embeddings is in tests/factors/test_embeddings.py and test_other_tables.py, and that of
# Kronecker products beside them in test_kronecker.py. What is cut again and again while adapters
# are trained is in tests/stages/test_compensate.py.
NOT_CLOSED = {
    "sparsegpt-svd",
    "lorap",
    "albert",
    "shapeshifter",
    "tensorgpt",
    "kngpt2",
    "lora-svd",
    "loraprune",
    "width-pruning",
    "tfwsvd",
    "lpaf-without-step-1",
    "lpaf-without-step-2",
    "lpaf-without-step-3",
}
CLOSED = [name for name in RECIPES if name not in NOT_CLOSED]
ROWS, LENGTH, RANK = 24, 12, 3


def batches(vocabulary: int) -> list[dict[str, np.ndarray]]:
    """Three of them, padded."""
    random = np.random.default_rng(5)
    mask = np.arange(LENGTH) < random.integers(3, LENGTH + 1, (ROWS, 1))
    whole = {
        "input_ids": random.integers(4, vocabulary, (ROWS, LENGTH)).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "labels": random.integers(0, 2, ROWS).astype(np.int32),
        "weight": np.ones(ROWS, np.float32),
    }
    return [{name: x[i : i + 8] for name, x in whole.items()} for i in range(0, ROWS, 8)]


class Case:
    """A model with its data, and the statistics of every matrix."""

    def __init__(self, model: Any, loss: Any, data: list[dict[str, np.ndarray]]):
        params = parameters(model)
        weights = compressible(params)
        random = np.random.default_rng(2)
        scores = {p: jnp.asarray(random.gamma(1.0, size=w.shape)) for p, w in weights.items()}
        masks = {p: jnp.ones(w.shape, bool) for p, w in weights.items()}
        self.subject = Subject(
            model, weights, scores, masks, {}, lambda count=None: data[:count], loss
        )
        places = [path.removesuffix(".kernel") for path in weights]
        inputs = activation_moments(model, data)
        outputs = gradient_moments(model, data, loss, places)
        fisher = fisher_scores(as_function(model), params, data, loss)
        self.statistics = {
            f"{place}.kernel": Statistics(
                inputs[place].second,
                inputs[place].mean,
                outputs[place],
                fisher[f"{place}.kernel"],
                scores[f"{place}.kernel"],
            )
            for place in places
        }


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def case(request: Any, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "encoder":
        model = load_model(tiny.model, num_labels=2)
        return Case(model, CLASSIFICATION.loss, batches(len(WORDS)))
    folder: Path = write_decoder(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")
    return Case(load_model(folder, head="lm"), LANGUAGE.loss, batches(VOCABULARY))


@pytest.mark.parametrize("name", CLOSED)
def test_every_matrix_is_what_its_formula_says(case: Case, name: str) -> None:
    [stage] = [each for each in make_recipe(name).stages if isinstance(each, Factorize)]
    found = factorize(
        case.subject,
        importance=stage.importance,
        solver=stage.solver,
        rank=RANK,
        floor=stage.floor,
        ridge=stage.ridge,
    )
    assert found.keys() == case.subject.weights.keys()
    for path, w in case.subject.weights.items():
        product, bias = answer(name, w, case.statistics[path], RANK)
        factors, change = found[path]
        size = np.abs(product).max()
        np.testing.assert_allclose(factors.dense(), product, atol=2e-3 * size, err_msg=path)
        assert (change is None) == (bias is None)
        if change is not None:
            np.testing.assert_allclose(change, bias, atol=2e-3 * size, err_msg=path)
