"""Runs that make sums of Kronecker products, with a task and by a text, and their exports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, records_of, save_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.factorization import factorize_embeddings
from lpaf_jax.linalg import kronecker_shapes
from lpaf_jax.models import as_function, layer_at, parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.runs import pipeline
from tests.one_shot import perplexity
from tests.tiny import WORDS, Tiny
from tests.tiny_decoder import write_decoder, write_text


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapeshifter") / "run"
    pipeline.compress(**tiny.chosen(out, recipe="shapeshifter", params=0.4))
    return out


@pytest.fixture(scope="module")
def by_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("text")
    model = write_decoder(place / "gpt2", "gpt2")
    texts = {name: write_text(place / f"{name}.txt", 400, seed=i) for i, name in enumerate("ab")}
    chosen = {"recipe": "shapeshifter", "params": 0.5, "samples": 6, "block_epochs": 2}
    pipeline.compress(
        model, out=place / "run", calibration=texts["a"], held_out=texts["b"], quiet=True, **chosen
    )
    return place


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def test_a_task_ends_in_sums_within_the_share(trained: Path) -> None:
    model, found = load_model(trained / "model"), figures(trained)
    records = records_of(model)
    assert {each["kind"] for each in records.values()} == {"kronecker"}
    for path, record in records.items():
        outer, inner = record["outer"], record["inner"]
        shape = outer[0] * inner[0], outer[1] * inner[1]
        assert (tuple(outer), tuple(inner)) == kronecker_shapes(*shape), path
    kept = found["encoder_params_ratio"]
    assert 0.3 < kept <= 0.4
    assert found["ranks"] == {path: record["rank"] for path, record in records.items()}
    told = found["described"]["factorized"]["text"]
    assert "replaced by sums of r Kronecker products, r" in told
    assert "sums of r Kronecker products" in (trained / "model" / "README.md").read_text()


def test_the_walk_cuts_and_tunes_what_its_folder_holds(by_text: Path) -> None:
    found, folder = figures(by_text / "run"), by_text / "run" / "model"
    expected = perplexity(folder, by_text / "b.txt")
    assert found["stages"]["final"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    model = load_model(folder)
    records, cuts = records_of(model), {cut["path"]: cut for cut in found["matrices"]}
    assert {path: cut["record"] for path, cut in cuts.items()} == records
    sizes = {p: layer_at(model, p).outer.size + layer_at(model, p).inner.size for p in records}
    assert found["params"]["final"]["encoder"] == sum(sizes.values())
    assert 0.45 < found["encoder_params_ratio"] <= 0.5
    page = (by_text / "run" / "report.html").read_text()
    ranks = {record["rank"] for record in records.values()}
    assert all(f"{rank} terms" in page for rank in ranks)


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    mask = np.arange(9) < np.array([9, 4, 1])[:, None]
    ids = np.random.default_rng(5).integers(4, len(WORDS), mask.shape)
    whole = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: x.astype(np.int32) for name, x in whole.items()}


def export(run: Path, out: Path, kind: str) -> Path:
    assert main(["export", str(run), "--format", kind, "--out", str(out)]) == 0
    return out


OTHER_TABLES = ("trains", "kronecker", "kronecker-sums")


@pytest.fixture(
    params=[
        *("matrices", "low-rank"),
        *(pytest.param(form, marks=pytest.mark.slow) for form in OTHER_TABLES),
    ]
)
def made(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> Path:
    """A run whose matrices are sums, or a folder of a model whose table is of another form."""
    if request.param == "matrices":
        found: Path = request.getfixturevalue("trained")
        return found
    model, table = load_model(tiny.model, num_labels=2), FAMILIES["bert"].table
    factorize_embeddings(model, table, 0.6, np.ones(len(WORDS), int), form=request.param)
    out = tmp_path / "made"
    save_model(model, out, source=tiny.model, label_names=["no", "yes"], card="# Card\n")
    return out


def test_programs_answer_as_the_model_does(
    made: Path, tmp_path: Path, batch: dict[str, np.ndarray]
) -> None:
    folder = made / "model" if (made / "model").is_dir() else made
    for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime
    import torch
    from jax import export as jax_export
    from safetensors.numpy import load_file

    from lpaf_jax.checkpoints.torch_twin import torch_twin

    model = load_model(folder)
    expected = np.asarray(as_function(model)(parameters(model), {}, batch))
    wide = {name: x.astype(np.int64) for name, x in batch.items()}
    with torch.no_grad():
        twin = torch_twin(folder)(**{n: torch.tensor(x) for n, x in wide.items()})
    np.testing.assert_allclose(twin.logits.numpy(), expected, atol=1e-4)
    session = onnxruntime.InferenceSession(export(made, tmp_path / "o", "onnx") / "model.onnx")
    for rows in (slice(None), slice(1, 2)):
        given = {name: x[rows] for name, x in wide.items()}
        np.testing.assert_allclose(session.run(None, given)[0], expected[rows], atol=1e-4)
    out = export(made, tmp_path / "s", "stablehlo")
    program = jax_export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    for rows in (slice(None), slice(1, 2)):
        given = {name: x[rows] for name, x in batch.items()}
        found = program.call(load_file(out / "weights.safetensors"), given)
        np.testing.assert_allclose(np.asarray(found), expected[rows], atol=1e-5)


@pytest.mark.slow
def test_kngpt2_cuts_every_second_block_and_learns_from_what_is_in_between(by_text: Path) -> None:
    out = by_text / "kngpt2"
    texts = {"calibration": by_text / "a.txt", "held_out": by_text / "b.txt"}
    chosen = {"samples": 6, "tune_epochs": 2.0, "tune_lr": 3e-3, "batch": 2, "quiet": True}
    found = pipeline.compress(by_text / "gpt2", out=out, recipe="kngpt2", **texts, **chosen)
    model = load_model(out / "model")
    records = records_of(model)
    assert records.pop("transformer.wte") == {
        "kind": "kronecker_embedding",
        "rank": 1,
        "pattern": 2,
    }
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert set(records) == {f"transformer.h.1.{layer}" for layer in layers}
    pairs = {path.rpartition(".h.1.")[2]: record["inner"] for path, record in records.items()}
    assert pairs == {key: [2, 1] for key in layers} | {"mlp.c_proj": [1, 2]}
    assert found["encoder_params_ratio"] == pytest.approx(0.75, abs=1e-3)
    stages = {name: figures["perplexity"] for name, figures in found["stages"].items()}
    assert stages["final"] < stages["factorized"]
    expected = perplexity(out / "model", by_text / "b.txt")
    assert stages["final"] == pytest.approx(expected, rel=1e-4)
    assert (
        "learn from the dense model's hidden states and attention"
        in (found["described"]["final"]["text"])
    )


def test_what_cannot_be_is_told_before_any_work(
    tiny: Tiny, by_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    chosen = {"recipe": "kngpt2", "out": out, "calibration": by_text / "a.txt", "samples": 6}
    with pytest.raises(
        LpafError, match="the blocks that stay dense are already 50.0%: give a larger share"
    ):
        pipeline.compress(by_text / "gpt2", params=0.4, **chosen)
    with pytest.raises(SettingError, match="embeddings_as needs --embeddings"):
        pipeline.compress(by_text / "gpt2", embeddings=None, **chosen)
    with pytest.raises(LpafError, match="the blocks that stay dense"):
        pipeline.compress(**tiny.chosen(out, recipe="kngpt2", params=0.4))
    pairs = {"importance": "none", "solver": "kronecker-pairs", "ranks": "uniform", "rank": 3}
    with pytest.raises(SettingError, match="rank 3 is more than 2"):
        pipeline.compress(**tiny.chosen(out, recipe="svd-ft", params=None, **pairs))
    assert not out.exists()


def test_a_share_that_no_whole_rank_keeps_is_told(
    tiny: Tiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "do_step", stop)
    pairs = {"importance": "none", "solver": "kronecker-pairs", "ranks": "share", "params": 0.3}
    chosen = tiny.chosen(tmp_path / "out", recipe="svd", **pairs) | {"quiet": False}
    with pytest.raises(KeyboardInterrupt):  # it is told before any work
        pipeline.compress(**chosen)
    told = " ".join(capsys.readouterr().err.split())
    assert "30.0 % requested: with whole ranks, the closest share is 50.1 % of the" in told
