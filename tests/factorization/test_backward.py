"""Gradients block by block from disk, against those of the whole model in memory."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.factorization.backward import Backward
from lpaf_jax.factorization.states import log_likelihood
from lpaf_jax.importance import activation_moments, gradient_moments
from lpaf_jax.train import LANGUAGE
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

# Seven texts: one part of four, and one of three.
TOKENS = (np.random.default_rng(1).zipf(1.3, (7, LENGTH)) % VOCABULARY).astype(np.int32)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("models") / request.param, request.param)


def walk(folder: Path, work: Path) -> tuple[DecoderOnDisk, Backward]:
    source = DecoderOnDisk(folder)
    return source, Backward(source, TOKENS, work)


def places_of(source: DecoderOnDisk, index: int) -> list[str]:
    start = f"{source.prefix(index)}."
    return [path.removeprefix(start) for path in source.matrices() if path.startswith(start)]


def test_both_sides_are_those_of_the_whole_model(folder: Path, tmp_path: Path) -> None:
    source, backward = walk(folder, tmp_path)
    model = load_model(folder, head="lm")
    ones = np.ones_like(TOKENS)
    batch = {"input_ids": TOKENS, "attention_mask": ones, "weight": np.ones(7, np.float32)}
    gradients = gradient_moments(model, [batch], LANGUAGE.loss)
    inputs = activation_moments(model, [batch])
    done: list[int] = []
    backward.forward(done.append)
    assert done == [1, 2]
    for index in (1, 0):
        found = backward.block(index, source.block(index), places_of(source, index))
        for place, sides in found.items():
            path = f"{source.prefix(index)}.{place}"
            expected = np.asarray(gradients[path])
            np.testing.assert_allclose(
                sides.gradients, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
            )
            for one, other in zip(sides.inputs[:3], inputs[path][:3], strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    shared = {id(sides.inputs.second) for sides in found.values()}
    assert len(shared) == 4


def test_a_walk_that_was_stopped_goes_on_from_its_block(folder: Path, tmp_path: Path) -> None:
    source, whole = walk(folder, tmp_path / "whole")
    assert not whole.reached(1)
    whole.forward(lambda done: None)
    whole.block(1, source.block(1), places_of(source, 1))
    expected = whole.block(0, source.block(0), places_of(source, 0))
    _, stopped = walk(folder, tmp_path / "stopped")
    stopped.forward(lambda done: None)
    stopped.block(1, source.block(1), places_of(source, 1))
    _, again = walk(folder, tmp_path / "stopped")
    assert again.reached(1)  # whose figures may not have been kept
    assert again.reached(0)
    for place, sides in again.block(0, source.block(0), places_of(source, 0)).items():
        np.testing.assert_array_equal(sides.gradients, expected[place].gradients)


@pytest.mark.parametrize("length", [2, 128, 300])
def test_a_long_text_passes_the_head_in_parts(length: int) -> None:
    rng = np.random.default_rng(length)
    head = jnp.asarray(rng.normal(size=(8, 50)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, length, 8)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 50, (2, length)))

    class Ending:
        body: Any = type("Body", (), {"finish": staticmethod(lambda x: 2 * x)})
        head: Any = staticmethod(lambda x: x @ head)

    def whole(x: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(2 * x @ head)[:, :-1]
        return jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1).sum()

    found, expected = (
        jax.value_and_grad(f)(x) for f in (lambda x: log_likelihood(Ending, x, ids), whole)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)
