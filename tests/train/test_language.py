"""The objective of language models against scipy in float64, and which checkpoint is the best."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from lpaf_jax.train import (
    LANGUAGE,
    Checkpoints,
    distilled,
    log_likelihood,
    make_step,
    run_steps,
    task_loss,
)
from lpaf_jax.train.losses import TEACHER
from tests.train.test_loop import Rows
from tests.train.toy import OPTIMIZER, forward, stage_of, start

BATCH, LENGTH, WORDS = 3, 6, 11
Batch = dict[str, Any]


@pytest.fixture
def batch() -> Batch:
    """A window of 6 tokens, a text of 4 padded at both ends, a row that only fills the batch up."""
    random = np.random.default_rng(0)
    mask = np.ones((BATCH, LENGTH), np.int32)
    mask[1] = [0, 1, 1, 1, 1, 0]
    return {
        "input_ids": random.integers(0, WORDS, (BATCH, LENGTH)).astype(np.int32),
        "attention_mask": mask,
        "weight": np.array([1, 1, 0], np.float32),
    }


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (2, BATCH, LENGTH, WORDS)).astype(np.float32)


PLACES = [(0, t) for t in range(5)] + [(1, t) for t in range(1, 4)]


def test_the_loss_is_that_of_the_next_token(batch: Batch, logits: np.ndarray) -> None:
    ids = batch["input_ids"]
    lost = [-log_softmax(logits[0, i, t].astype(float))[ids[i, t + 1]] for i, t in PLACES]
    assert float(LANGUAGE.loss(logits[0], batch)) == pytest.approx(np.mean(lost), rel=1e-6)
    sums = log_likelihood(jnp.asarray(logits[0]), batch)
    np.testing.assert_allclose(sums, [-sum(lost[:5]), -sum(lost[5:]), 0], rtol=1e-6)


def test_its_gradient_is_that_of_the_next_token(batch: Batch, logits: np.ndarray) -> None:
    found = jax.grad(LANGUAGE.loss)(jnp.asarray(logits[0]), batch)
    expected = np.zeros((BATCH, LENGTH, WORDS))
    for i, t in PLACES:
        expected[i, t] = softmax(logits[0, i, t].astype(float))
        expected[i, t, batch["input_ids"][i, t + 1]] -= 1
    np.testing.assert_allclose(found, expected / len(PLACES), atol=1e-6)


def test_divergence_and_distillation_are_means_over_tokens(
    batch: Batch, logits: np.ndarray
) -> None:
    gaps, distances, temperature = [], [], 2.5
    for i, t in PLACES:
        first, second = logits[:, i, t].astype(float)
        p, q = softmax(first), softmax(second)
        gaps.append(0.5 * (rel_entr(p, q) + rel_entr(q, p)).sum())
        soft = [softmax(x / temperature) for x in (second, first)]
        distances.append(temperature**2 * rel_entr(*soft).sum())
    assert float(LANGUAGE.divergence(*logits, batch)) == pytest.approx(np.mean(gaps), rel=1e-5)
    taught = distilled(LANGUAGE, 0.5, temperature=temperature)
    taught_batch = batch | {TEACHER: jnp.asarray(logits[1])}
    found = float(taught.loss(jnp.asarray(logits[0]), taught_batch))
    alone = float(LANGUAGE.loss(logits[0], batch))
    assert found == pytest.approx(alone + 0.5 * np.mean(distances), rel=1e-5)


def test_no_more_than_a_gradient_is_made_of_the_size_of_the_logits() -> None:
    rows, length, words, width = 4, 32, 5000, 8
    one = rows * length * words * 4
    batch = {
        "input_ids": jnp.zeros((rows, length), jnp.int32),
        "attention_mask": jnp.ones((rows, length), jnp.int32),
        "weight": jnp.ones(rows),
    }

    def loss(table: Any, states: Any) -> Any:
        return LANGUAGE.loss(states @ table.T, batch)

    given = (jnp.zeros((words, width)), jnp.zeros((rows, length, width)))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=1)).lower(*given).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2.2 * one


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 15), ("perplexity", 10)])
def test_less_perplexity_is_the_better_checkpoint(tmp_path: Path, metric: str, best: int) -> None:
    told = iter([50.0, 20.0, math.inf if metric == "perplexity" else 60.0, 30.0])
    stage = stage_of(20)._replace(metric=metric, validate=lambda _: next(told))
    step = make_step(task_loss(forward), OPTIMIZER)
    rows = Rows()
    run_steps(stage, step, start(), {}, until=20, monitor=rows, checkpoints=Checkpoints(tmp_path))
    # What is logged is the metric itself.
    key = f"validation_{metric}"
    assert [row[key] for row in rows if key in row][:2] == [50.0, 20.0]
    assert int(Checkpoints(tmp_path).restore(start(), best=True).step) == best
    assert int(Checkpoints(tmp_path).restore(start()).step) == 20
