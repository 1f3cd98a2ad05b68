"""A block whose factors are tuned, against the dense states it should leave."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.states import States
from lpaf_jax.factorization.store import Store
from lpaf_jax.factorization.tune_block import tune_block
from lpaf_jax.linalg import svd
from lpaf_jax.models import LowRankLinear, layer_at, parameters, replace_layer
from tests.tiny_decoder import LENGTH, VOCABULARY, narrow, write_decoder

# Six texts: one part of four, and one of two.
TOKENS = (np.random.default_rng(1).zipf(1.3, (6, LENGTH)) % VOCABULARY).astype(np.int32)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def source(request: Any, tmp_path_factory: pytest.TempPathFactory) -> DecoderOnDisk:
    folder = tmp_path_factory.mktemp("models") / request.param
    return DecoderOnDisk(write_decoder(folder, request.param))


def cut(source: DecoderOnDisk) -> tuple[Any, States, States]:
    """The first block with half of its matrices cut, its inputs, and what the dense one gives."""
    block, embedder = source.block(0), source.embedder()
    given, wanted = States.of(embedder, TOKENS), States.of(embedder, TOKENS)
    given.x += 0.05 * np.random.default_rng(0).normal(size=given.x.shape).astype(np.float32)
    wanted.advance(block)
    for path in list(source.matrices())[:2]:
        place = path.removeprefix(f"{source.prefix(0)}.")
        layer = layer_at(block, place)
        bias = None if layer.bias is None else layer.bias[...]
        replace_layer(block, place, LowRankLinear(svd(layer.kernel[...], 6), bias))
    return block, given, wanted


def error(block: Any, given: States, wanted: States) -> float:
    after = States(given.x.copy(), given.context)
    after.advance(block)
    lost = np.sum((after.x.astype(np.float64) - wanted.x) ** 2, -1) / np.sum(wanted.x**2.0, -1)
    return float(lost.mean())


def test_the_states_come_nearer_and_only_factors_move(source: DecoderOnDisk) -> None:
    block, given, wanted = cut(source)
    before, params = error(block, given, wanted), parameters(block)
    told = tune_block(block, given, wanted, epochs=30, lr=3e-3, seed=0)
    assert told == pytest.approx((before, error(block, given, wanted)), rel=1e-4)
    assert told[1] < 0.8 * told[0]
    moved = {
        path.rpartition(".")[0]
        for path, x in parameters(block).items()
        if not np.array_equal(x, params[path])
    }
    places = [path.removeprefix(f"{source.prefix(0)}.") for path in source.matrices()]
    assert moved == set(places[:2])


def test_what_does_not_help_is_undone(source: DecoderOnDisk) -> None:
    block, given, wanted = cut(source)
    params = parameters(block)
    before, after = tune_block(block, given, wanted, epochs=1, lr=30.0, seed=0)
    assert before == after
    for path, x in parameters(block).items():
        np.testing.assert_array_equal(x, params[path])


def test_a_block_without_factors_is_left_alone(source: DecoderOnDisk) -> None:
    block, states = source.block(0), States.of(source.embedder(), TOKENS)
    assert tune_block(block, states, states, epochs=1, lr=1e-3, seed=0) == (0, 0)


def test_a_whole_walk_is_nearer_to_the_dense_model_and_goes_on_when_stopped(tmp_path: Path) -> None:
    source = DecoderOnDisk(narrow(write_decoder(tmp_path / "llama", "llama")))
    found = {}
    for epochs in (0, 20):
        plan = Plan(params=0.5, block_epochs=epochs, block_lr=3e-3)
        store = Store(tmp_path / str(epochs))
        compress_decoder(source, TOKENS, plan, store)
        states, dense = (States.of(source.embedder(), TOKENS) for _ in range(2))
        for index in range(source.blocks):
            block = source.block(index)
            dense.advance(block)
            kept = store.block(index)
            assert kept is not None
            for c in kept[1]:
                a, b = (
                    jnp.asarray(kept[0][f"{c.path}.{n}.weight"].T, jnp.float32)
                    for n in ("down", "up")
                )
                layer = layer_at(block, c.path.removeprefix(f"{source.prefix(index)}."))
                layer.kernel.set_value(a @ b)
            states.advance(block)
        found[epochs] = float(np.mean((states.x - dense.x) ** 2))
    assert found[20] < 0.8 * found[0]

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    stopped = Store(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        compress_decoder(source, TOKENS, plan, stopped, say=stop)
    compress_decoder(source, TOKENS, plan, stopped)
    for index in range(source.blocks):
        one, other = stopped.block(index), store.block(index)
        assert one is not None
        assert other is not None
        for name, x in one[0].items():
            np.testing.assert_array_equal(x, other[0][name], err_msg=name)
