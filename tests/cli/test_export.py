import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.cli import main
from lpaf_jax.factorization.swap import to_factors
from lpaf_jax.linalg import svd
from lpaf_jax.models import as_function, compressible, parameters
from lpaf_jax.solvers import Solution
from tests.tiny import ENCODER, HIDDEN, INNER, LAYERS, POSITIONS, WORDS, Tiny
from tests.tiny_decoder import write_decoder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    mask = np.arange(9) < np.array([9, 4, 1])[:, None]
    ids = rng.integers(4, len(WORDS), mask.shape)
    return {
        "input_ids": ids.astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": np.zeros_like(ids, np.int32),
    }


@pytest.fixture(scope="module")
def logits(finished: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    model = load_model(finished / "model")
    return np.asarray(as_function(model)(parameters(model), {}, batch))


def export(run: Path, out: Path, kind: str, *more: str) -> Path:
    assert main(["export", str(run), "--format", kind, "--out", str(out), *more]) == 0
    return out


def in_torch(folder: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of a plain checkpoint, which must fit its architecture tensor by tensor."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = {name: torch.tensor(x).long() for name, x in batch.items()}
    with torch.no_grad():
        found: np.ndarray = model.eval()(**inputs).logits.float().numpy()
    return found


def test_dense_is_a_plain_checkpoint(
    finished: Path, tmp_path: Path, batch: Any, logits: Any, capsys: Capture
) -> None:
    out = export(finished, tmp_path / "out", "dense")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{finished / 'model'}: ")
    assert told[1].startswith(f"{out}: ")
    source = load_file(finished / "model" / "model.safetensors")
    found = load_file(out / "model.safetensors")
    for name in found:
        layer = name.removesuffix(".weight")
        if f"{layer}.down.weight" in source:
            product = source[f"{layer}.up.weight"].astype(np.float64) @ source[
                f"{layer}.down.weight"
            ].astype(np.float64)
            np.testing.assert_allclose(found[name], product, atol=1e-6)
    assert sum(x.size for n, x in found.items() if ".encoder." in n and x.ndim == 2) == ENCODER
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert "lpaf_factors" not in config
    assert (out / "tokenizer.json").read_bytes() == (
        finished / "model" / "tokenizer.json"
    ).read_bytes()
    model = load_model(out)
    mine = np.asarray(as_function(model)(parameters(model), {}, batch))
    np.testing.assert_allclose(mine, logits, atol=1e-4)


def test_dense_is_read_by_the_auto_class(
    finished: Path, tmp_path: Path, batch: Any, logits: Any
) -> None:
    out = export(finished, tmp_path / "out", "dense")
    np.testing.assert_allclose(in_torch(out, batch), logits, atol=1e-4)


def test_dense_in_bfloat16_has_half_the_bytes(
    finished: Path, tmp_path: Path, batch: Any, logits: Any
) -> None:
    whole = export(finished, tmp_path / "whole", "dense")
    half = export(finished, tmp_path / "half", "dense", "--dtype", "bfloat16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (whole, half)]
    assert 0.5 <= sizes[1] / sizes[0] < 0.6  # the header is as long
    assert {x.dtype.name for x in load_file(half / "model.safetensors").values()} == {"bfloat16"}
    assert json.loads((half / "config.json").read_text())["dtype"] == "bfloat16"
    model = load_model(half)
    mine = np.asarray(as_function(model)(parameters(model), {}, batch))
    assert 1e-6 < np.abs(mine - logits).max() < 0.2


def test_factors_in_bfloat16(
    finished: Path, tmp_path: Path, batch: Any, logits: Any, capsys: Capture
) -> None:
    source = finished / "model"
    half = export(finished, tmp_path / "half", "factorized", "--dtype", "bfloat16")
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in told] == [str(source), str(half)]
    before, after = (load_file(place / "model.safetensors") for place in (source, half))
    assert {x.dtype.name for x in after.values()} == {"bfloat16"}
    assert {n: x.shape for n, x in after.items()} == {n: x.shape for n, x in before.items()}
    for name, x in after.items():
        np.testing.assert_array_equal(x, before[name].astype(x.dtype))
    configs = [json.loads((place / "config.json").read_text()) for place in (source, half)]
    assert configs[1] == configs[0] | {"dtype": "bfloat16"}
    assert {x.name for x in half.iterdir()} == {x.name for x in source.iterdir()}
    assert "Stored in bfloat16" in (half / "README.md").read_text()
    model = load_model(half)
    mine = np.asarray(as_function(model)(parameters(model), {}, batch))
    assert 1e-6 < np.abs(mine - logits).max() < 0.2

    whole = export(half, tmp_path / "whole", "factorized", "--dtype", "float32")
    for name, x in load_file(whole / "model.safetensors").items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, after[name].astype(np.float32))


def test_the_card_of_a_dense_export_promises_no_factors(finished: Path, tmp_path: Path) -> None:
    out = export(finished, tmp_path / "out", "dense")
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: transformers" in card or "library_name" not in card
    assert "plain `transformers` cannot read" not in card
    assert "Multiplied back" in card
    assert "## Limits" in card


_RUN = """
import json, sys
for name in ("lpaf_jax", "flax", "transformers", "torch"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from run import load
batch = {k: np.array(v) for k, v in json.loads(sys.argv[2]).items()}
forward = load(Path(sys.argv[1]))
alone = forward(batch["input_ids"][1:2, :4])
try:
    forward(np.ones((1, 33)))
except ValueError as error:
    assert "33 tokens exceed the 32" in str(error)
else:
    raise AssertionError("a text was too long")
print(json.dumps([forward(**batch).tolist(), alone.tolist()]))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_runs_where_this_library_is_not(
    finished: Path, tmp_path: Path, batch: Any, logits: Any, dtype: str
) -> None:
    out = export(finished, tmp_path / "out", "stablehlo", "--dtype", dtype)
    given = json.dumps({name: x.tolist() for name, x in batch.items()})
    command = [sys.executable, "-c", _RUN, str(out), given]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    found, alone = (np.array(x) for x in json.loads(ended.stdout))
    tolerance = 1e-5 if dtype == "float32" else 0.2
    np.testing.assert_allclose(found, logits, atol=tolerance)
    # Padding left out, one text instead of three: other sides, the same program.
    np.testing.assert_allclose(alone[0], logits[1], atol=tolerance)


def test_factors_stay_factors_in_a_program(finished: Path, tmp_path: Path) -> None:
    out = export(finished, tmp_path / "out", "stablehlo")
    stored = load_file(out / "weights.safetensors")
    expected = parameters(load_model(finished / "model"))
    assert {k: x.shape for k, x in stored.items()} == {k: x.shape for k, x in expected.items()}
    assert any(name.endswith(".a") for name in stored)
    for name, array in stored.items():
        np.testing.assert_array_equal(array, expected[name])
    from jax import export as jax_export

    program = jax_export.deserialize(bytearray((out / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    # The weights are given to the program, not a part of it.
    given = sorted(aval.shape for aval in program.in_avals if None not in map(_whole, aval.shape))
    assert given == sorted(x.shape for x in expected.values())
    text = np.ones((1, POSITIONS + 1), np.int32)
    batch = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), text)
    with pytest.raises(ValueError, match="shapes"):
        program.call(dict(stored), batch)


def _whole(extent: Any) -> int | None:
    return extent if isinstance(extent, int) else None


def test_onnx_gives_the_same_logits(
    finished: Path, tmp_path: Path, batch: Any, logits: Any
) -> None:
    for name in ("torch", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    import onnxruntime

    out = export(finished, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(out / "model.onnx")
    wide = {name: x.astype(np.int64) for name, x in batch.items()}
    np.testing.assert_allclose(session.run(None, wide)[0], logits, atol=1e-4)
    one = {name: x[1:2, :4] for name, x in wide.items()}
    np.testing.assert_allclose(session.run(None, one)[0][0], logits[1], atol=1e-4)
    import onnx

    stored = [tuple(x.dims) for x in onnx.load(out / "model.onnx").graph.initializer]
    rank = json.loads((finished / "metrics.json").read_text())["rank"]
    assert stored.count((HIDDEN, rank)) == 5 * LAYERS  # all but that of the second feed-forward one
    assert stored.count((INNER, rank)) == LAYERS
    assert (HIDDEN, INNER) not in stored


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_is_exported_whatever_way_round_its_weights_lie(
    tmp_path: Path, capsys: Capture, family: str
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from lpaf_jax.checkpoints.torch_twin import torch_twin

    source = write_decoder(tmp_path / "dense", family)
    model = load_model(source)
    kernels = compressible(parameters(model))
    factors = {p: Solution(svd(w, 5 + i % 3)) for i, (p, w) in enumerate(kernels.items())}
    to_factors(model, factors)
    cut = tmp_path / "cut"
    save_model(model, cut, source=source, label_names=None, card="# cut\n")
    ids = np.random.default_rng(0).integers(1, 50, (2, 7)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}
    expected = np.asarray(as_function(model)(parameters(model), {}, batch))

    out = export(cut, tmp_path / "plain", "dense")
    plain, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for theirs in (plain.eval(), torch_twin(cut)):
        with torch.no_grad():
            found = theirs(input_ids=torch.tensor(ids).long()).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)

    program = export(cut, tmp_path / "program", "stablehlo")
    runner = importlib.util.spec_from_file_location("run", program / "run.py")
    assert runner is not None
    assert runner.loader is not None
    module = importlib.util.module_from_spec(runner)
    runner.loader.exec_module(module)
    np.testing.assert_allclose(module.load(program)(ids), expected, atol=1e-4)


def refused(capsys: Capture, *words: Path | str) -> str:
    assert main(["export", *map(str, words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_what_is_refused(
    finished: Path, tiny: Tiny, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    out = tmp_path / "out"
    full = refused(capsys, finished, "--format", "dense", "--out", tmp_path / "full")
    assert "full is not empty" in full
    assert [x.name for x in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    dense = refused(capsys, tiny.model, "--format", "dense", "--out", out)
    assert "is already dense; --dtype" in dense
    none = refused(capsys, tiny.model, "--format", "factorized", "--out", out)
    assert "has no factors: use --format dense" in none
    same = refused(capsys, finished, "--format", "factorized", "--out", out)
    assert "--dtype is missing" in same
    wrong = refused(capsys, finished, "--format", "onnx", "--dtype", "bfloat16", "--out", out)
    assert "--dtype cannot be bfloat16 with --format onnx" in wrong
    others = {"torch": True, "onnxscript": True}
    monkeypatch.setattr("lpaf_jax.export.onnx.find_spec", others.get)
    assert "--format onnx needs onnx" in refused(capsys, finished, "--format", "onnx", "--out", out)
    assert not out.exists()
