"""Block by block from disk, against the same done with the whole model in memory."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factorization import to_factors
from lpaf_jax.factorization.blocks import Outcome, compress_decoder, output_error
from lpaf_jax.factorization.dense import Plan
from lpaf_jax.factorization.states import advanced
from lpaf_jax.factorization.store import Store
from lpaf_jax.importance import (
    IMPORTANCES,
    Subject,
    Weighting,
    activation_moments,
    gradient_moments,
    of_model,
)
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import compressible, parameters
from lpaf_jax.ranks import choose_ranks, loss_spectrum
from lpaf_jax.recipes import make_recipe
from lpaf_jax.solvers import Solution
from lpaf_jax.stages import Factorize
from lpaf_jax.train import LANGUAGE
from tests.closed_forms import Statistics, answer
from tests.tiny_decoder import LENGTH, VOCABULARY, narrow, write_decoder

RANDOM = np.random.default_rng(1)
# Seven texts: one batch of four, and one of three.
TOKENS = (RANDOM.zipf(1.3, (7, LENGTH)) % VOCABULARY).astype(np.int32)
HELD_OUT = (RANDOM.zipf(1.3, (3, LENGTH)) % VOCABULARY).astype(np.int32)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("models") / request.param, request.param)


def run(folder: Path, work: Path, plan: Plan, **more: Any) -> tuple[Outcome, Store]:
    store = Store(work)
    return compress_decoder(DecoderOnDisk(folder), TOKENS, plan, store, **more), store


def factors_in(store: Store, index: int) -> dict[str, LowRank]:
    kept = store.block(index)
    assert kept is not None
    tensors, cuts = kept
    return {
        cut.path: LowRank(*(tensors[f"{cut.path}.{n}.weight"].T for n in ("down", "up")))
        for cut in cuts
        if cut.record is not None
    }


def by_kernel(factors: dict[str, LowRank]) -> dict[str, Solution]:
    return {
        f"{path}.kernel": Solution(LowRank(*(jnp.asarray(x, jnp.float32) for x in pair)))
        for path, pair in factors.items()
    }


def dense_of(folder: Path) -> Subject:
    """The dense model with the texts, as a run gives it where gradients are needed."""
    model = load_model(folder, head="lm")

    def batches(count: int | None = None) -> Any:
        for ids in TOKENS[:count]:
            ones = np.ones_like(ids)[None]
            yield {"input_ids": ids[None], "attention_mask": ones, "weight": np.ones(1)}

    weights = compressible(parameters(model))
    return Subject(model, weights, {}, {}, {}, batches, LANGUAGE.loss)


def whole(folder: Path, store: Store, recipe: str) -> dict[str, Any]:
    """What each block should hold: metrics are taken behind the blocks compressed before it."""
    model = load_model(folder, head="lm")
    expected: dict[str, Any] = {}
    dense = dense_of(folder)
    places = [path.removesuffix(".kernel") for path in dense.weights]
    fisher = of_model(IMPORTANCES["fisher"], dense)
    gradients = gradient_moments(dense.model, dense.batches(), LANGUAGE.loss, places)
    for index in range(2):
        moments = activation_moments(model, [{"input_ids": TOKENS}])
        weights = compressible(parameters(model))
        found = solutions_in(store, index, dense)
        for path, solution in found.items():
            moment = moments[path.removesuffix(".kernel")]
            entries = fisher[path].entries
            statistics = Statistics(
                moment.second,
                moment.mean,
                gradients[path.removesuffix(".kernel")],
                entries,
                entries,
            )
            rank = solution.factors.a.shape[1]
            expected[path] = solution, answer(recipe, weights[path], statistics, rank)
        to_factors(model, found)
    return expected


def solutions_in(store: Store, index: int, dense: Subject) -> dict[str, Solution]:
    """The factors of a block, and what was added to its biases."""
    kept = store.block(index)
    assert kept is not None
    tensors, found, params = kept[0], {}, parameters(dense.model)
    for path, pair in by_kernel(factors_in(store, index)).items():
        place = path.removesuffix(".kernel")
        change = None
        if f"{place}.bias" in params:
            change = jnp.asarray(tensors[f"{place}.up.bias"]) - params[f"{place}.bias"]
        found[path] = Solution(pair.factors, change)
    return found


# Each recipe in a family that can say most of it: of biases, and of gradients block by block.
@pytest.mark.parametrize(
    ("folder", "recipe"),
    [
        pytest.param("gpt2", "fwsvd", marks=pytest.mark.slow),
        ("gpt2", "afm"),
        *(("llama", name) for name in ("svd", "drone", "awsvd", "afm", "kfac-svd")),
    ],
    indirect=["folder"],
)
def test_each_block_is_cut_for_what_the_compressed_ones_before_it_give(
    folder: Path, tmp_path: Path, recipe: str
) -> None:
    shapes = DecoderOnDisk(folder).matrices()
    [stage] = [each for each in make_recipe(recipe).stages if isinstance(each, Factorize)]
    plan = Plan(
        stage.importance,
        stage.solver,
        params=0.6,
        floor=stage.floor,
        # The other ones take their gradients block by block.
        dense=(lambda: dense_of(folder)) if recipe == "fwsvd" else None,
    )
    if recipe == "afm" and folder.name == "llama":
        with pytest.raises(LpafError, match="has no bias"):
            run(folder, tmp_path, plan)
        return
    _, store = run(folder, tmp_path, plan)
    expected = whole(folder, store, recipe)
    assert expected.keys() == {f"{path}.kernel" for path in shapes}
    for path, ((pair, change), (product, bias)) in expected.items():
        m, n = product.shape
        assert pair.a.shape == (m, int(0.6 * m * n / (m + n)))
        np.testing.assert_allclose(pair.dense(), product, atol=2e-3, err_msg=path)
        if change is not None:
            np.testing.assert_allclose(change, 0 if bias is None else bias, atol=2e-3, err_msg=path)


def test_errors_and_perplexity_are_those_of_the_model_that_is_kept(
    folder: Path, tmp_path: Path
) -> None:
    outcome, store = run(folder, tmp_path, Plan(params=0.6), held_out={"other": HELD_OUT})
    model = load_model(folder, head="lm")
    moments = activation_moments(model, [{"input_ids": TOKENS}])
    weights = parameters(model)
    first = factors_in(store, 0)
    for cut in outcome.cuts[: len(first)]:
        w = np.asarray(weights[f"{cut.path}.kernel"], np.float64)
        lost = w - np.asarray(first[cut.path].a, np.float64) @ first[cut.path].b
        moment = np.asarray(moments[cut.path].second, np.float64)
        share = np.trace(lost.T @ moment @ lost) / np.trace(w.T @ moment @ w)
        assert cut.error == pytest.approx(share, rel=1e-3)
    found = {"dense": perplexity(model)}
    to_factors(model, by_kernel(first | factors_in(store, 1)))
    found["compressed"] = perplexity(model)
    assert outcome.perplexity["other"] == pytest.approx(found, rel=1e-4)
    assert found["compressed"] != pytest.approx(found["dense"], rel=1e-3)


def perplexity(model: Any) -> float:
    logits = np.asarray(model(HELD_OUT), np.float64)[:, :-1]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.exp(-np.take_along_axis(log_p, HELD_OUT[:, 1:, None], -1).mean()))


def test_outputs_are_closer_than_by_plain_svd(folder: Path, tmp_path: Path) -> None:
    ours, _ = run(folder, tmp_path / "a", Plan(params=0.5))
    plain, _ = run(folder, tmp_path / "b", Plan("none", "plain", params=0.5))
    for cut, other in zip(ours.cuts[:4], plain.cuts[:4], strict=True):
        assert cut.error < other.error, cut.path


def test_a_walk_that_was_stopped_ends_as_one_that_was_not(folder: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(text: str) -> None:
        if text.startswith("block 1 of 2"):
            raise Stop

    with pytest.raises(Stop):
        run(folder, tmp_path / "stopped", Plan(params=0.6), held_out={"other": HELD_OUT}, say=stop)
    before = (tmp_path / "stopped" / "block-00000.safetensors").stat().st_mtime_ns
    told: list[str] = []
    given: dict[str, Any] = {"held_out": {"other": HELD_OUT}, "say": told.append}
    resumed, one = run(folder, tmp_path / "stopped", Plan(params=0.6), **given)
    first = next(text for text in told if text.startswith("block 1 of 2: resumed"))
    assert "left" not in first  # its time tells nothing of what is to be cut
    assert (tmp_path / "stopped" / "block-00000.safetensors").stat().st_mtime_ns == before
    unbroken, other = run(
        folder, tmp_path / "whole", Plan(params=0.6), held_out={"other": HELD_OUT}
    )
    assert resumed == unbroken
    for index in range(2):
        found, expected = one.block(index), other.block(index)
        assert found is not None
        assert expected is not None
        assert found[0].keys() == expected[0].keys()
        for name, x in found[0].items():
            np.testing.assert_array_equal(x, expected[0][name], err_msg=name)


def test_a_walk_back_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "model", "llama")
    plan = Plan("two-sided", "metric", "measured", params=0.6)
    for stop in ("block 2 of 2: forward", "block 2 of 2: backward", "block 1 of 2: backward"):

        def say(text: str, stop: str = stop) -> None:
            if text.startswith(stop):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "stopped", plan, say=say)
    said: list[str] = []
    _, one = run(folder, tmp_path / "stopped", plan, say=said.append)
    assert not any("backward" in text or "forward" in text for text in said)
    _, other = run(folder, tmp_path / "whole", plan)
    assert one.ranks() == other.ranks()
    for index in range(2):
        found, expected = one.block(index), other.block(index)
        assert found is not None
        assert expected is not None
        for name, x in found[0].items():
            np.testing.assert_array_equal(x, expected[0][name], err_msg=name)


def test_factors_have_the_dtype_of_the_file_and_figures_are_of_them(tmp_path: Path) -> None:
    folder = narrow(write_decoder(tmp_path / "model", "llama"))
    outcome, store = run(folder, tmp_path / "work", Plan(params=0.6), held_out={"other": HELD_OUT})
    kept = store.block(0)
    assert kept is not None
    assert {str(x.dtype) for x in kept[0].values()} == {"bfloat16"}
    model = load_model(folder, head="lm")
    for index in range(2):
        to_factors(model, by_kernel(factors_in(store, index)))
    assert outcome.perplexity["other"]["compressed"] == pytest.approx(perplexity(model), rel=1e-4)


@pytest.mark.slow
def test_ranks_go_where_they_keep_most_within_the_budget(folder: Path, tmp_path: Path) -> None:
    outcome, _ = run(folder, tmp_path, Plan(params=0.6, ranks="loss"))
    sizes = [cut.numbers for cut in outcome.cuts]
    dense = sum(cut.shape[0] * cut.shape[1] for cut in outcome.cuts)
    assert 0.5 < sum(sizes) / dense <= 0.6
    shares = {size / (c.shape[0] * c.shape[1]) for size, c in zip(sizes, outcome.cuts, strict=True)}
    assert max(shares) - min(shares) > 0.1


def test_a_matrix_that_factors_would_not_shrink_stays_dense_and_pays_for_no_more() -> None:
    flat, steep = np.ones(8), np.array([1.0, *[1e-3] * 7])
    shapes = {"a": (8, 8), "b": (8, 8)}
    ranks = choose_ranks("loss", shapes, params=0.75, spectra={"a": flat, "b": steep})
    # All 64 numbers of the first: factors of full rank would be 128. 32 are left: rank 2.
    assert ranks == {"a": None, "b": 2}


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)], ids=str)
@pytest.mark.parametrize("rows", [20, 4], ids=["regular", "singular"])
def test_the_spectrum_that_ranks_are_chosen_by(shape: tuple[int, int], rows: int) -> None:
    rng = np.random.default_rng(3)
    w, x = rng.normal(size=shape), rng.normal(size=(rows, shape[0]))
    narrow_w, moment = jnp.asarray(w, jnp.float32), jnp.asarray(x.T @ x, jnp.float32)
    expected = np.zeros(min(shape))
    values = np.linalg.svd(x @ w, compute_uv=False)[: min(shape)]
    expected[: len(values)] = values
    found = loss_spectrum(narrow_w, Weighting(left=moment))
    # What is near zero is the root of what is rounded.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-2)
    scores, others = rng.random(shape[0]), rng.random(shape[1])
    both = Weighting(left=jnp.asarray(scores), right=jnp.diag(jnp.asarray(others)))
    weighed = np.sqrt(scores)[:, None] * w * np.sqrt(others)
    np.testing.assert_allclose(
        loss_spectrum(narrow_w, both), np.linalg.svd(weighed, compute_uv=False), rtol=1e-3
    )
    plain = np.linalg.svd(w, compute_uv=False)
    np.testing.assert_allclose(loss_spectrum(narrow_w, Weighting()), plain, rtol=1e-4)


@pytest.mark.parametrize("power", [-120, -64, 60])
def test_spectra_and_errors_near_the_ends_of_float32(power: int) -> None:
    rng = np.random.default_rng(4)
    w, x = rng.normal(size=(6, 9)), rng.normal(size=(20, 6))
    a, b = rng.normal(size=(6, 2)), rng.normal(size=(2, 9))
    moment = x.T @ x
    small, product = (jnp.asarray(np.ldexp(y, power), jnp.float32) for y in (w, a @ b))
    lost = w - a @ b
    share = np.trace(lost.T @ moment @ lost) / np.trace(w.T @ moment @ w)
    found = float(output_error(small, product, jnp.asarray(moment)))
    assert found == pytest.approx(share, rel=1e-5)
    s = np.ldexp(loss_spectrum(small, Weighting(left=jnp.asarray(moment))), -power)
    np.testing.assert_allclose(s, np.linalg.svd(x @ w)[1][:6], rtol=1e-4)


def test_a_massive_channel_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """One input of a layer is ten thousand times the others, in the moments of a walk too."""
    folder = write_decoder(tmp_path / "model", "llama")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"][5] *= 1e5
    tensors["model.layers.0.mlp.down_proj.weight"][:, 5] *= 1e-5
    save_file(tensors, file)
    _, store = run(folder, tmp_path / "work", Plan(params=0.6))
    path = "model.layers.0.mlp.down_proj"
    f = factors_in(store, 0)[path]
    model = load_model(folder, head="lm")
    moment = np.asarray(activation_moments(model, [{"input_ids": TOKENS}])[path].second, np.float64)
    strengths = np.sqrt(np.diagonal(moment))
    assert strengths[5] > 1e4 * np.median(strengths)
    w = np.asarray(parameters(model)[f"{path}.kernel"], np.float64)
    rank = f.a.shape[1]
    s, q = np.linalg.eigh(moment)
    root = np.sqrt(np.maximum(s, 1e-16 * s[-1]))[:, None] * q.T
    u, kept, vt = np.linalg.svd(root @ w, full_matrices=False)
    best = np.linalg.solve(root, (u[:, :rank] * kept[:rank]) @ vt[:rank])
    usual = np.delete(np.arange(len(w)), 5)

    def lost(product: np.ndarray) -> float:
        rest = (w - product)[usual]
        return float(np.trace(rest.T @ moment[np.ix_(usual, usual)] @ rest))

    found = np.asarray(f.a, np.float64) @ np.asarray(f.b, np.float64)
    assert lost(found) == pytest.approx(lost(best), rel=0.02)


def test_texts_longer_than_the_model_reads_are_refused(folder: Path, tmp_path: Path) -> None:
    long = np.zeros((2, LENGTH + 1), np.int32)
    with pytest.raises(LpafError, match=f"{LENGTH + 1} tokens exceed the {LENGTH}"):
        compress_decoder(DecoderOnDisk(folder), long, Plan(params=0.5), Store(tmp_path))


def test_a_share_that_cannot_be_kept(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LpafError, match="cannot keep"):
        run(folder, tmp_path, Plan(params=1e-3, ranks="loss", dense=lambda: dense_of(folder)))


def test_activations_that_overflow_are_named(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "model", "llama", rms_norm_eps=float("nan"))
    with pytest.raises(LpafError, match=r"layers\.0\.self_attn\.q_proj: the inputs are not finite"):
        run(folder, tmp_path / "work", Plan(params=0.5))


def test_blocks_are_compiled_once(folder: Path, tmp_path: Path) -> None:
    jax.clear_caches()
    run(folder, tmp_path, Plan(params=0.5))
    # Dense blocks of one batch size are not advanced: only the compressed ones, in two sizes.
    assert advanced._cache_size() == 2
