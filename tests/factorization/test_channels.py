"""Feed-forward channels that go, block by block, and what is left making up for them."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.store import Cut, Store
from lpaf_jax.importance.activations import layer_inputs
from lpaf_jax.linalg import eliminate_channels
from lpaf_jax.models import layer_at
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

RANDOM = np.random.default_rng(1)
TOKENS = (RANDOM.zipf(1.3, (24, LENGTH)) % VOCABULARY).astype(np.int32)
PLAN = Plan(ranks="share", params=0.6, channels="feed-forward")
TWO_SIDED = Plan("two-sided", "metric", "loss", params=0.6, channels="all")
# The feed-forward parts of the small models: channels, and what one takes.
SIZES = {"llama": (48, 3 * 32), "gpt2": (128, 2 * 32)}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("models") / request.param, request.param)


def cut(folder: Path, work: Path, plan: Plan) -> tuple[Store, dict[str, Cut]]:
    store = Store(work)
    found = compress_decoder(DecoderOnDisk(folder), TOKENS, plan, store)
    return store, {each.path: each for each in found.cuts}


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Cut]]:
    return cut(folder, tmp_path_factory.mktemp("whole"), PLAN)


def given_to(model: Any, path: str) -> np.ndarray:
    _, inputs, _ = layer_inputs(model, [path], lambda: model(TOKENS))
    x = np.asarray(inputs[path], np.float64)
    return x.reshape(-1, x.shape[-1])


def test_the_channels_left_make_up_for_those_that_are_gone(
    folder: Path, whole: tuple[Store, dict[str, Cut]]
) -> None:
    """In the first block, which is given what the dense model is."""
    store, cuts = whole
    source, model = DecoderOnDisk(folder), load_model(folder, head="lm")
    feed, (total, _) = source.feed_forward(0), SIZES[folder.name]
    count = int(0.6 * total)
    kept = store.block(0)
    assert kept is not None
    tensors, _ = kept
    x = given_to(model, feed.out)
    w = np.asarray(layer_at(model, feed.out).kernel[...], np.float64)
    order = np.asarray(eliminate_channels(w, x.T @ x / len(x)).order)
    left = np.sort(order[total - count :])
    for path in feed.into:
        assert cuts[path].record == {"kind": "sliced", "inputs": 32, "outputs": count}
        layer = layer_at(model, path)
        np.testing.assert_array_equal(tensors[f"{path}.weight"].T, layer.kernel[...][:, left])
        if layer.bias is not None:
            np.testing.assert_array_equal(tensors[f"{path}.bias"], layer.bias[...][left])
    strengths = np.sqrt(0.01 * np.sum(np.square(x[:, left]), axis=0))
    rows = np.concatenate([x[:, left], np.diag(strengths)])
    aim = np.concatenate([x @ w, strengths[:, None] * w[left]])
    best = np.linalg.lstsq(rows, aim, rcond=None)[0]
    assert cuts[feed.out].record == {"kind": "sliced", "inputs": count, "outputs": 32}
    np.testing.assert_allclose(tensors[f"{feed.out}.weight"].T, best, atol=2e-4)
    lost = np.square(x @ w - x[:, left] @ best).sum() / np.square(x @ w).sum()
    assert cuts[feed.out].error == pytest.approx(lost, rel=1e-2)


def test_one_budget_for_ranks_and_channels(folder: Path, tmp_path: Path) -> None:
    ranks = "measured" if folder.name == "llama" else "loss"
    _, cuts = cut(folder, tmp_path, TWO_SIDED._replace(ranks=ranks))
    dense = sum(np.prod(each.shape) for each in cuts.values())
    kept = sum(each.numbers for each in cuts.values())
    _, price = SIZES[folder.name]
    assert 0.6 * dense - price < kept <= 0.6 * dense
    source = DecoderOnDisk(folder)
    widths = [cuts[source.feed_forward(i).out].record for i in range(2)]
    assert widths[0] != widths[1]
    for path, each in cuts.items():
        low_rank = each.record is not None and each.record["kind"] == "low_rank"
        assert not low_rank or not any(path in source.feed_forward(i) for i in range(2))


def test_what_channels_are_worth_is_what_the_loss_rises_by(folder: Path, tmp_path: Path) -> None:
    store, _ = cut(folder, tmp_path, TWO_SIDED)
    source = DecoderOnDisk(folder)
    for index in range(2):
        out = source.feed_forward(index).out
        worth = store.sides(index, "spectrum")[f"{out}:spectrum"]
        assert len(worth) == SIZES[folder.name][0]
        x = given_to(load_model(folder, head="lm"), out)
        right = store.sides(index, "right")[f"{out}:right"]
        w = np.asarray(layer_at(load_model(folder, head="lm"), out).kernel[...])
        expected = eliminate_channels(w, x.T @ x / len(x), right).errors
        np.testing.assert_allclose(np.square(worth)[::-1], expected, rtol=2e-2, atol=1e-9)


def test_a_walk_that_was_stopped_goes_on_behind_the_block_it_had(
    folder: Path, whole: tuple[Store, dict[str, Cut]], tmp_path: Path
) -> None:
    store, _ = whole
    again, kept = Store(tmp_path), store.block(0)
    assert kept is not None
    again.keep_block(0, *kept)
    found = compress_decoder(DecoderOnDisk(folder), TOKENS, PLAN, again)
    assert found.cuts[: len(kept[1])] == kept[1]
    first, second = store.block(1), again.block(1)
    assert first is not None
    assert second is not None
    for name, value in first[0].items():
        np.testing.assert_allclose(second[0][name], value, atol=1e-6, err_msg=name)


def test_tuned_blocks_of_fewer_channels_come_nearer(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plan = PLAN._replace(block_epochs=3, block_lr=1e-3)
    compress_decoder(DecoderOnDisk(folder), TOKENS, plan, Store(tmp_path), say=said.append)
    off = [line.split("output error ")[1] for line in said if "output error" in line]
    assert len(off) == 2
    for line in off:
        before, after = (float(x.partition("%")[0]) for x in line.split(", ")[:2])
        assert after < before


def test_with_both_streams_what_attention_has_mended_is_not_mended_again(
    folder: Path, tmp_path: Path
) -> None:
    plan = Plan("shifted", "shifted", ranks="share", params=0.6, channels="feed-forward")
    store, _ = cut(folder, tmp_path, plan)
    source, model = DecoderOnDisk(folder), load_model(folder, head="lm")
    feed, dense = source.feed_forward(0), load_model(folder, head="lm")
    kept = store.block(0)
    assert kept is not None
    tensors, found = kept
    for each in found:
        if each.record is not None and each.record["kind"] == "low_rank":
            down, up = (tensors[f"{each.path}.{name}.weight"].T for name in ("down", "up"))
            layer_at(model, each.path).kernel.set_value(jnp.asarray(down @ up))
    x, given = given_to(dense, feed.out), given_to(model, feed.out)
    w = np.asarray(layer_at(dense, feed.out).kernel[...], np.float64)
    order = np.asarray(eliminate_channels(w, given.T @ given / len(given)).order)
    left = np.sort(order[len(w) - int(0.6 * len(w)) :])
    strengths = np.sqrt(0.1 * np.sum(np.square(given[:, left]), axis=0))
    rows = np.concatenate([given[:, left], np.diag(strengths)])
    aim = np.concatenate([x @ w, strengths[:, None] * w[left]])
    best = np.linalg.lstsq(rows, aim, rcond=None)[0]
    np.testing.assert_allclose(tensors[f"{feed.out}.weight"].T, best, atol=1e-3)
