import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.bench import Pair, _torch_twins, find_pair
from lpaf_jax.evaluation.latency import time_in_turns
from lpaf_jax.report.bench import verdict
from lpaf_jax.runs.pipeline import compress
from tests.tiny import POSITIONS, Tiny
from tests.tiny_decoder import write_decoder, write_text

Capture = pytest.CaptureFixture[str]
SHORT = ("--batches", "1", "3", "--length", "8", "--repeats", "2")


def bench(out: Path, *words: Path | str) -> dict[str, Any]:
    assert main(["bench", *map(str, words), *SHORT, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpaf_jax.evaluation.bench.find_spec", lambda name: None)


def check_times(of: Mapping[str, Any]) -> None:
    for size in ("1", "3"):
        before, after = (of["times"][name][size] for name in ("dense", "compressed"))
        for times in (before, after):
            assert 0 < times["min"] <= times["median"] <= times["max"]
        gain = of["speedup"][size]
        assert gain["least"] == pytest.approx(before["min"] / after["max"])
        assert gain["median"] == pytest.approx(before["median"] / after["median"])
        assert gain["most"] == pytest.approx(before["max"] / after["min"])
        per_second = of["examples_per_second"]["compressed"][size]
        assert per_second * after["median"] == pytest.approx(1000 * int(size))


@pytest.mark.usefixtures("no_torch")
def test_a_run_is_timed_beside_its_own_dense_model(
    finished: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)  # what lies below is called from there
    found = bench(tmp_path / "new" / "times.json", finished)
    assert found["dense"] == "stages/dense"
    assert found["compressed"] == "model"
    assert list(found["frameworks"]) == ["jax"]
    check_times(found["frameworks"]["jax"])
    told = capsys.readouterr().out
    assert "No dense model was kept" not in told
    assert "PyTorch is not installed" in told
    lines = " ".join(told.split())
    assert lines.endswith(found["verdict"])


@pytest.mark.usefixtures("no_torch")
def test_what_is_compared_is_named_and_a_file_that_cannot_be_written_costs_no_measurement(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").touch()
    words = ["bench", str(finished), *SHORT, "--json", str(tmp_path / "file" / "times.json")]
    assert main(words) == 2
    said = capsys.readouterr()
    assert "cannot write" in said.err
    lines = said.out.splitlines()
    assert f"Compressed: {finished / 'model'}" in lines
    assert f"Dense: {finished / 'stages' / 'dense'}" in lines
    told = " ".join(said.out.split())
    assert "In JAX the compressed model is at batch 1" in told
    assert "in float32" in told


def test_a_dense_model_of_another_family_or_shape_is_refused(
    finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(LpafError, match="family gpt2, the other of bert; name another"):
        find_pair(finished, write_decoder(tmp_path / "gpt2", "gpt2"))
    dense = finished / "stages" / "dense"
    for name, change, told in (
        ("narrow", lambda x: x[:48].copy(), "32 × 48 in one and 32 × 64 in the other"),
        ("less", None, "absent in one and 32 × 64 in the other"),
    ):
        other = Path(shutil.copytree(dense, tmp_path / name))
        tensors = load_file(other / "model.safetensors")
        wide = "bert.encoder.layer.1.intermediate.dense.weight"
        x = tensors.pop(wide)
        save_file(tensors | ({wide: change(x)} if change else {}), other / "model.safetensors")
        with pytest.raises(LpafError, match=rf"layer\.1\.intermediate\.dense is {told}"):
            find_pair(finished, other)


def test_a_compression_without_training_is_timed_beside_what_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_decoder(tmp_path / "models" / "dense", "gpt2")
    text = write_text(tmp_path / "text.txt", 100, seed=0)
    chosen: dict[str, Any] = {"recipe": "svd", "samples": 2, "params": 0.6, "quiet": True}
    compress("models/dense", calibration=text, out="runs/small", **chosen)
    assert find_pair(Path("runs/small")).dense == tmp_path / "models" / "dense"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = tmp_path / "runs" / "small"
    assert find_pair(run).dense == tmp_path / "models" / "dense"
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    assert find_pair(moved).dense is None
    monkeypatch.chdir(tmp_path)
    assert find_pair(moved).dense == Path("models/dense")
    shutil.rmtree("models")
    write_decoder(tmp_path / "models" / "dense", "gpt2", n_layer=1)
    assert find_pair(run).dense is None


@pytest.mark.usefixtures("no_torch")
def test_without_a_dense_model_its_shape_is_timed_and_that_is_said(
    finished: Path, tmp_path: Path, capsys: Capture
) -> None:
    alone = Path(shutil.copytree(finished / "model", tmp_path / "alone"))
    found = bench(tmp_path / "times.json", alone)
    assert found["dense"] is None
    check_times(found["frameworks"]["jax"])
    assert "with random weights was timed instead" in " ".join(capsys.readouterr().out.split())
    for against in (finished, finished / "stages" / "dense"):
        found = bench(tmp_path / "times.json", alone, "--against", against)
        assert found["dense"] == str(finished / "stages" / "dense")


def test_pytorch_is_timed_where_it_is(finished: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    found = bench(tmp_path / "times.json", finished)
    of = found["frameworks"]["pytorch"]
    check_times(of)
    assert of["version"] == torch.__version__
    assert of["threads"] == torch.get_num_threads()


def test_models_take_turns_and_the_first_pass_is_not_counted() -> None:
    calls: list[tuple[str, tuple[int, ...]]] = []

    def passing(name: str) -> Any:
        def prepare(batch: Mapping[str, np.ndarray]) -> Any:
            assert batch["attention_mask"].all()
            return lambda: calls.append((name, batch["input_ids"].shape))

        return prepare

    found = time_in_turns(
        {"a": passing("a"), "b": passing("b")}, batches=(1, 4), length=7, repeats=5
    )
    shapes = [(1, 7), (4, 7)]
    assert calls == [(name, shape) for shape in shapes for _ in range(8) for name in "ab"]
    assert found["a"].keys() == {"1", "4"}
    assert found["a"]["1"].keys() == {"median", "min", "max", "first"}


def test_what_is_not_counted_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # Passes of 50 s (compiling), 2, 2 (warm-up), 1, 2 and 9 s, by a clock of our own.
    seconds = iter([0, 50, 0, 2, 0, 2, 0, 1, 0, 2, 0, 9])
    monkeypatch.setattr("lpaf_jax.evaluation.latency.time.perf_counter", lambda: next(seconds))
    found = time_in_turns({"a": lambda _: lambda: None}, batches=(1,), length=2, repeats=3)
    assert found["a"]["1"] == {"first": 50e3, "median": 2e3, "min": 1e3, "max": 9e3}


def test_a_slow_model_is_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def slow() -> None:
        calls.append(now[0])
        now[0] += 9.0

    monkeypatch.setattr("lpaf_jax.evaluation.latency.time.perf_counter", lambda: now[0])
    time_in_turns({"a": lambda _: slow}, batches=(1,), length=2, repeats=15)
    assert len(calls) == 2 + 5


def speedup(least: float, median: float, most: float) -> dict[str, float]:
    return {"least": least, "median": median, "most": most}


def test_the_verdict_is_one_plain_sentence() -> None:
    jax = {"1": speedup(1.1, 1.3, 1.5), "8": speedup(0.9, 1.3, 1.4), "32": speedup(0.5, 0.6, 0.9)}
    found = {"frameworks": {"jax": {"speedup": jax}, "pytorch": {"speedup": {"1": jax["1"]}}}}
    assert verdict(found) == (
        "In JAX the compressed model is at batch 1 1.30 times as fast (1.10 to 1.50), at batch 8 "
        "not measurably faster, as the ranges overlap (0.90 to 1.40), at batch 32 slower, 0.60 "
        "times as fast (0.50 to 0.90); in PyTorch the compressed model is at batch 1 1.30 times "
        "as fast (1.10 to 1.50)."
    )


def test_the_pytorch_models_compute_the_same(finished: Path) -> None:
    torch = pytest.importorskip("torch")
    from lpaf_jax.checkpoints import load_model
    from lpaf_jax.checkpoints.torch_twin import torch_twin
    from lpaf_jax.models import as_function, parameters

    ids = np.arange(4, 16, dtype=np.int32).reshape(2, 6)
    mask = np.array([[1] * 6, [1] * 3 + [0] * 3], np.int32)
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
    inputs = {name: torch.tensor(x).long() for name, x in batch.items()}
    for place in (finished / "model", finished / "stages" / "dense"):
        model, twin = load_model(place), torch_twin(place)
        mine = as_function(model)(parameters(model), {}, batch)
        with torch.no_grad():
            theirs = twin(**inputs).logits.numpy()
        np.testing.assert_allclose(theirs, mine, atol=1e-4)
    numbers = sum(p.numel() for p in torch_twin(finished / "model").parameters())
    assert numbers == sum(x.size for x in parameters(load_model(finished / "model")).values())
    dense = torch_twin(finished / "stages" / "dense")
    drawn = _torch_twins(Pair(None, finished / "model"), "classification")
    assert drawn["dense"].state_dict().keys() == dense.state_dict().keys()
    assert (
        drawn["compressed"].state_dict().keys()
        == torch_twin(finished / "model").state_dict().keys()
    )


def test_what_is_refused(finished: Path, tiny: Tiny, capsys: Capture) -> None:
    for words, told in (
        ([tiny.model], "is dense: name a compressed model"),
        ([finished, "--against", finished / "model"], "is compressed: name a dense model"),
        (
            [finished, "--length", POSITIONS + 1],
            f"--length is {POSITIONS + 1}, but must be from 1 to",
        ),
        ([finished, "--batches", 0], "--batches has 0, but each must be at least 1"),
        ([finished, "--repeats", 0], "--repeats is 0"),
    ):
        assert main(["bench", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert told in said.err
        assert "Traceback" not in said.err
