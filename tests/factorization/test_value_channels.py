"""Values of attention that go, in the basis of each head, and their queries making up for them."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.factorization import channels
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.store import Cut, Store
from lpaf_jax.factors import Heads
from lpaf_jax.importance import Moment
from lpaf_jax.importance.activations import layer_inputs
from lpaf_jax.models import layer_at
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

TOKENS = (np.random.default_rng(1).zipf(1.3, (24, LENGTH)) % VOCABULARY).astype(np.int32)
PLAN = Plan(ranks="share", params=0.6, channels="all")
VALUE, OUT = "model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.o_proj"
# Two heads of eight values, each for two queries.
HEADS, SHARED, WIDTH = 2, 2, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "llama"
    return write_decoder(place, "llama", attention_bias=True)


@pytest.fixture(scope="module")
def first(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, np.ndarray], dict[str, Cut]]:
    store = Store(tmp_path_factory.mktemp("work"))
    compress_decoder(DecoderOnDisk(folder), TOKENS, PLAN, store)
    kept = store.block(0)
    assert kept is not None
    return kept[0], {cut.path: cut for cut in kept[1]}


def left_of(cut: Cut) -> tuple[int, int]:
    assert cut.record is not None
    return cut.record["inputs"], cut.record["outputs"]


def heads_of(cut: Cut) -> Heads:
    assert cut.record is not None
    found = cut.record["heads"]
    return Heads(found["side"], found["width"], tuple(found["left"]))


def given_to_out(folder: Path) -> np.ndarray:
    model = load_model(folder, head="lm")
    _, inputs, _ = layer_inputs(model, [OUT], lambda: model(TOKENS))
    return np.asarray(inputs[OUT], np.float64).reshape(-1, HEADS * SHARED * WIDTH)


def dense(folder: Path, path: str) -> np.ndarray:
    return np.asarray(layer_at(load_model(folder, head="lm"), path).kernel[...], np.float64)


def test_queries_make_up_for_the_values_that_are_gone(
    folder: Path, first: tuple[dict[str, np.ndarray], dict[str, Cut]]
) -> None:
    tensors, cuts = first
    given, taken = map(heads_of, (cuts[VALUE], cuts[OUT]))
    count = int(0.6 * HEADS * WIDTH)
    assert (given.side, given.width, sum(given.left)) == ("outputs", WIDTH, count)
    assert taken == ("inputs", WIDTH, tuple(np.repeat(given.left, SHARED)))
    assert left_of(cuts[VALUE]) == (32, count)
    assert left_of(cuts[OUT]) == (SHARED * count, 32)
    model = load_model(folder, head="lm")
    w, bias = dense(folder, VALUE), np.asarray(layer_at(model, VALUE).bias[...])
    ends = np.cumsum(given.left)
    turns = []
    for head, left in enumerate(given.left):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        mine = slice(ends[head] - left, ends[head])
        kernel = np.asarray(tensors[f"{VALUE}.weight"].T[:, mine], np.float64)
        turns.append(np.linalg.lstsq(w[:, own], kernel, rcond=None)[0])
        np.testing.assert_allclose(w[:, own] @ turns[-1], kernel, atol=1e-5)
        np.testing.assert_allclose(bias[own] @ turns[-1], tensors[f"{VALUE}.bias"][mine], atol=1e-5)
    z = given_to_out(folder).reshape(-1, HEADS, SHARED, WIDTH)
    parts = [z[:, h, q] @ turns[h] for h in range(HEADS) for q in range(SHARED)]
    x, full = np.concatenate(parts, axis=1), z.reshape(len(z), -1)
    aim, found = full @ dense(folder, OUT), np.asarray(tensors[f"{OUT}.weight"].T, np.float64)
    # Least squares, but for the ridge, whose pull is a hundredth of what is lost.
    best = x @ np.linalg.lstsq(x, aim, rcond=None)[0]
    lost, least = (np.square(aim - y).sum() for y in (x @ found, best))
    assert least < lost < 1.02 * least
    assert cuts[OUT].error == pytest.approx(lost / np.square(aim).sum(), rel=1e-3)


def test_without_a_basis_of_their_own_more_is_lost(
    folder: Path, first: tuple[dict[str, np.ndarray], dict[str, Cut]]
) -> None:
    x, w = given_to_out(folder), jnp.asarray(dense(folder, OUT), jnp.float32)
    second = x.T @ x / len(x)
    between = DecoderOnDisk(folder).values_between(0)
    assert between is not None
    moment = Moment(jnp.asarray(second, jnp.float32), jnp.zeros(len(w)), len(x))
    # The same rows together, in the basis that the model has.
    order = np.arange(len(w)).reshape(HEADS, SHARED, WIDTH).swapaxes(1, 2).ravel()
    plain = channels.Space(
        w[order], Moment(moment.second[order][:, order], moment.mean, 1), SHARED, None
    )
    turned = channels.in_space(between, w, moment, None)
    for gone in (3, 8, 12):
        by = [channels.elimination(s, None).errors[:gone].sum() for s in (turned, plain)]
        assert by[0] < 0.8 * by[1]


def test_a_basis_is_undone_by_its_inverse(folder: Path) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((32, 20))
    x = rng.standard_normal((200, 32)) * np.logspace(0, 3, 32)
    x[:, :WIDTH] = 0  # what the first query takes
    moment = Moment(jnp.asarray(x.T @ x / 200, jnp.float32), jnp.zeros(32), 200)
    between = DecoderOnDisk(folder).values_between(0)
    assert between is not None
    right = np.cov(rng.standard_normal((20, 60)))
    space = channels.in_space(between, jnp.asarray(w, jnp.float32), moment, jnp.asarray(right))
    assert space.turned is not None
    _, turn, back = space.turned
    np.testing.assert_allclose(turn @ back, np.eye(32), atol=1e-4)
    np.testing.assert_allclose(turn @ space.w, w, atol=1e-3)
    np.testing.assert_allclose(x @ turn @ space.w, x @ w, atol=1e-2)


def test_of_a_head_that_is_never_given_anything_nothing_breaks(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, 32))
    x[:, : SHARED * WIDTH] = 0
    moment = Moment(jnp.asarray(x.T @ x / 200, jnp.float32), jnp.zeros(32), 200)
    between = DecoderOnDisk(folder).values_between(0)
    assert between is not None
    space = channels.in_space(between, jnp.ones((32, 5)), moment, None)
    found = channels.elimination(space, None)
    assert np.isfinite(found.errors).all()
    assert set(np.asarray(found.order[:WIDTH]).tolist()) == set(range(WIDTH))
