import gzip
import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.data import Examples, Task, encode, eval_batches, load_task, load_tokenizer
from lpaf_jax.data.examples import unlabelled
from lpaf_jax.evaluation import analysis
from lpaf_jax.export import export_dense
from lpaf_jax.factorization.spectra import entry_figures
from lpaf_jax.models import layer_at
from lpaf_jax.report.spectra import sentences
from tests.factors.test_sliced import write_sliced
from tests.tiny import GOOD, HIDDEN, INNER, LAYERS, Tiny, write_table
from tests.tiny import sentences as tiny_sentences
from tests.tiny_decoder import write_text

Capture = pytest.CaptureFixture[str]
LAYER = "bert.encoder.layer"


def energy_rank(s: np.ndarray) -> int:
    energy = np.cumsum(np.square(s, dtype=np.float64))
    return int(np.argmax(energy >= 0.9 * energy[-1])) + 1


def effective_rank(s: np.ndarray) -> float:
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def analyze(out: Path, *words: Path | str) -> dict[str, Any]:
    assert main(["analyze", *map(str, words), "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "analysis.json").read_text())
    return found


@pytest.fixture(scope="module")
def found(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("analysis") / "out"
    words = (tiny.model, "--task", tiny.data, "--texts", "20", "--length", "16")
    return analyze(out, *words), out


def test_weights_have_the_spectra_that_numpy_finds(found: Any, tiny: Tiny) -> None:
    stored = load_file(tiny.model / "model.safetensors")
    assert len(found[0]["weights"]) == 6 * LAYERS
    for entry in found[0]["weights"]:
        w = stored[f"{entry['name'].removeprefix('bert.')}.weight"].T
        s = np.linalg.svd(w.astype(np.float64), compute_uv=False)
        assert entry["shape"] == list(w.shape)
        assert entry["full"] == min(w.shape) == len(entry["spectrum"])
        assert entry["energy_rank"] == energy_rank(s)
        assert entry["effective_rank"] == pytest.approx(effective_rank(s), abs=0.02)
        np.testing.assert_allclose(entry["spectrum"], s / s[0], rtol=2e-3, atol=1e-5)


def test_features_have_the_spectra_of_the_inputs_stacked(found: Any, tiny: Tiny) -> None:
    model = load_model(tiny.model, num_labels=2)
    train = load_task(str(tiny.data), limit=20).train
    encoded = encode(load_tokenizer(tiny.model), train, 16)
    rows: list[list[np.ndarray]] = [[], []]
    for batch in eval_batches(encoded, 1):
        _, hidden = model.with_hidden(
            batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        )
        for i in range(LAYERS):
            rows[i] += [np.asarray(hidden[i])[0][batch["attention_mask"][0] > 0]]
    assert len(found[0]["features"]) == 4 * LAYERS
    for i in range(LAYERS):
        inputs = np.concatenate(rows[i])
        assert found[0]["tokens"] == len(inputs) == sum(map(len, encoded.ids))
        s = np.linalg.svd(inputs.astype(np.float64), compute_uv=False)
        name = f"{LAYER}.{i}.attention.self."
        entry = next(e for e in found[0]["features"] if name + "query" in e["names"])
        assert set(entry["names"]) == {name + kind for kind in ("query", "key", "value")}
        assert entry["shape"] == [len(inputs), HIDDEN]
        assert entry["energy_rank"] == energy_rank(s)
        assert entry["effective_rank"] == pytest.approx(effective_rank(s), rel=1e-3)
        np.testing.assert_allclose(entry["spectrum"], s / s[0], atol=1e-3)


def test_outputs_have_the_spectra_of_what_the_layers_give(found: Any, tiny: Tiny) -> None:
    model = load_model(tiny.model, num_labels=2)
    encoded = encode(load_tokenizer(tiny.model), load_task(str(tiny.data), limit=20).train, 16)
    path = f"{LAYER}.0.attention.self.query"
    w, rows = np.asarray(layer_at(model, path).kernel[...], np.float64), []
    for batch in eval_batches(encoded, 1):
        _, hidden = model.with_hidden(
            batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        )
        rows.append(np.asarray(hidden[0], np.float64)[0][batch["attention_mask"][0] > 0])
    outputs = np.concatenate(rows) @ w
    s = np.linalg.svd(outputs - outputs.mean(0), compute_uv=False)
    entry = next(e for e in found[0]["outputs"] if e["name"] == path)
    assert entry["shape"] == [len(outputs), HIDDEN]
    assert entry["energy_rank"] == energy_rank(s)
    np.testing.assert_allclose(entry["spectrum"], s / s[0], atol=1e-3)


def test_entries_are_described_as_by_scipy(found: Any, tiny: Tiny) -> None:
    from scipy.stats import kurtosis

    stored = load_file(tiny.model / "model.safetensors")
    for entry in found[0]["weights"]:
        w = stored[f"{entry['name'].removeprefix('bert.')}.weight"].T.astype(np.float64)
        assert entry["entries"]["kurtosis"] == pytest.approx(kurtosis(w.ravel()), abs=1e-6)
        assert entry["entries"]["variance"] == pytest.approx(w.var())
    one = np.zeros((4, 9))
    one[2, 3] = -5
    assert entry_figures(one)["hoyer"] == pytest.approx(1)
    assert entry_figures(np.ones((4, 9)))["hoyer"] == pytest.approx(0, abs=1e-9)
    weak = np.ones((4, 9)) * np.array([[1], [1], [1], [0.01]])
    assert (entry_figures(weak)["weak_rows"], entry_figures(weak)["weak_columns"]) == (0.25, 0)


def test_a_compressed_model_beside_its_dense_one(
    finished: Path, held_out: Path, tmp_path: Path, capsys: Capture
) -> None:
    dense = finished / "stages" / "dense"
    words = (finished, "--text", held_out, "--against", dense, "--length", "16")
    found = analyze(tmp_path / "out", *words)
    texts = [row.split("\t")[0] for row in held_out.read_text().splitlines()[1:]]
    encoded = encode(load_tokenizer(dense), unlabelled(texts), 16)
    states: list[list[np.ndarray]] = []
    for model in map(load_model, (dense, finished / "model")):
        rows: list[list[np.ndarray]] = [[] for _ in range(LAYERS + 1)]
        for batch in eval_batches(encoded, 1):
            _, hidden = model.with_hidden(
                batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
            )
            for i, state in enumerate(hidden):
                rows[i].append(np.asarray(state, np.float64)[0][batch["attention_mask"][0] > 0])
        states.append([np.concatenate(of) for of in rows])
    layers = found["against"]["layers"]
    assert len(layers) == LAYERS + 1
    for layer, x, y in zip(layers, *states, strict=True):
        error = np.sum((x - y) ** 2) / np.sum(x**2)
        assert layer["error"] == pytest.approx(error, rel=1e-3, abs=1e-9)
        x, y = x - x.mean(0), y - y.mean(0)
        norms = (np.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y)))
        both, own, other = norms
        assert layer["cka"] == pytest.approx(both**2 / (own * other), abs=1e-5)
    assert layers[-1]["error"] > layers[0]["error"]
    assert "Hidden states differ from those of" in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert "Hidden states compared with the other model" in page


@pytest.mark.slow
def test_a_model_of_fewer_channels_gives_what_its_dense_twin_gives(tmp_path: Path) -> None:
    sliced = write_sliced(tmp_path, "llama")
    plain, text = tmp_path / "plain", write_text(tmp_path / "text.txt", 60, seed=1)
    export_dense(sliced, plain)
    both = [
        analyze(tmp_path / name, folder, "--text", text, "--length", "16")["outputs"]
        for name, folder in (("a", sliced), ("b", plain))
    ]
    for one, other in zip(*both, strict=True):
        assert one["name"] == other["name"]
        assert one["energy_rank"] == other["energy_rank"]
        count = min(len(one["spectrum"]), len(other["spectrum"]))
        np.testing.assert_allclose(one["spectrum"][:count], other["spectrum"][:count], atol=2e-3)


def test_the_page_is_whole_and_loads_nothing(found: Any) -> None:
    page = (found[1] / "analysis.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.count("<svg") == 2 * 5  # each for a wide screen and a narrow one
    assert not re.search(r'(src|href)="(?!#|data:)', page.replace("xlink:", ""))
    for entry in found[0]["weights"]:
        assert f">{entry['energy_rank']} of {entry['full']}<" in page
    for line in sentences(found[0]):
        assert line.split(" (")[0].split(",")[0][:40] in page.replace("\u00a0", " ")
    picture = (found[1] / "spectra.png").read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert (width, height) == (2000, 1240)


def test_lines_of_a_file_are_read_too(tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    texts = tmp_path / "texts.txt"
    lines = [text for text, _ in tiny_sentences(30)]
    texts.write_text("\n\n".join(lines) + "\n")
    out = analyze(tmp_path / "out", tiny.model, "--text", texts, "--texts", "10")
    assert out["texts"] == 10
    assert out["source"] == str(texts)
    told = " ".join(capsys.readouterr().out.split())
    assert "90 % of the energy" in told
    assert "For its features" in told
    assert "There are few tokens" in told


def test_columns_and_copies_are_named_as_for_compress(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def read(task: str, **options: Any) -> Task:
        asked.append((task, options))
        return load_task(str(tiny.data))

    monkeypatch.setattr(analysis, "load_task", read)
    words = "--task rte --text-column a --label-column b --pair-column c --data d --texts 7"
    analyze(tmp_path / "out", tiny.model, *words.split())
    columns = {"text_column": "a", "label_column": "b", "pair_column": "c"}
    assert asked == [("rte", columns | {"data": Path("d"), "limit": 7})]


def test_lines_that_are_left_out_of_a_task_are_told(
    tiny: Tiny, tmp_path: Path, capsys: Capture
) -> None:
    rows = [f"{text}\t{label == 'positive':d}" for text, label in tiny_sentences(90)]
    for stem in ("train", "dev"):
        (tmp_path / f"{stem}.tsv").write_text("\n".join(["sentence\tlabel", "broken", *rows]))
    analyze(tmp_path / "out", tiny.model, "--task", "sst2", "--data", tmp_path, "--texts", "9")
    assert "lines of the archive left out, as broken or without a label: 2" in (
        capsys.readouterr().err
    )


def test_rows_of_a_table_are_read_by_their_column(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tiny_sentences(30)
    read: list[Examples] = []

    def seen(tokenizer: Any, examples: Examples, length: int) -> Any:
        read.append(examples)
        return encode(tokenizer, examples, length)

    monkeypatch.setattr(analysis, "encode", seen)
    table = write_table(tmp_path / "texts.csv", [("", "negative"), *rows])
    analyze(tmp_path / "a", tiny.model, "--text", table)
    analyze(tmp_path / "b", tiny.model, "--text", table, "--text-column", "label", "--texts", "2")
    texts, labels = read
    assert texts.texts == [text for text, _ in rows]
    assert labels.texts == ["negative", "positive"]


def test_a_compressed_model_shows_its_rank(finished: Path, capsys: Capture, tmp_path: Path) -> None:
    found = analyze(tmp_path / "out", finished)
    rank = json.loads((finished / "metrics.json").read_text())["rank"]
    assert found["features"] is None
    for entry in found["weights"]:
        spectrum = np.array(entry["spectrum"])
        assert (spectrum[:rank] > 1e-3).all()
        assert (spectrum[rank:] < 1e-5).all()
        assert entry["effective_rank"] <= rank + 0.1
    assert "Features were not analysed" in capsys.readouterr().out
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert page.count("<svg") == 2 * 2


def test_the_table_has_a_row_for_each_matrix(tiny: Tiny, capsys: Capture) -> None:
    assert main(["analyze", str(tiny.model)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    wide = [row for row in rows if f"{HIDDEN} × {INNER}" in " ".join(row)]
    assert len(wide) == LAYERS
    assert all(row[-2:] == ["of", str(HIDDEN)] for row in wide)


def test_what_is_refused(finished: Path, tiny: Tiny, tmp_path: Path, capsys: Capture) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    packed = tmp_path / "packed.txt"
    packed.write_bytes(gzip.compress(b"a film", mtime=0))
    before = (finished / "analysis.json").read_bytes()
    other = tmp_path / "other"
    shutil.copytree(tiny.model, other)
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(values | {"vocab_size": 7}))
    for words, told in (
        ([tiny.model, "--out", finished], "is the folder of a run"),
        ([tiny.model, "--text", empty], "contains no text"),
        ([tiny.model, "--text", tmp_path / "none"], "none does not exist"),
        ([tiny.model, "--text", packed], "packed.txt is packed (gzip): unpack it first"),
        ([tiny.model, "--texts", "0"], "--texts is 0, but must be at least 1"),
        ([tiny.model, "--task", GOOD[0], "--text", empty], "--task and --text exclude each other"),
        ([tiny.model, "--text", tiny.data, "--text-column", "x"], "has no column 'x'"),
        (
            [tiny.model, "--text", empty, "--text-column", "x"],
            "--text-column has no effect without a",
        ),
        ([tiny.model, "--text", tiny.data, "--data", "x"], "--data has no effect without --task"),
        ([tiny.model, "--label-column", "x"], "--label-column has no effect without --task"),
        ([tiny.model, "--task", tiny.data, "--data", "x"], "--data has no effect for task"),
        ([tiny.model, "--against", finished], "--against compares hidden states of texts"),
        ([tiny.model, "--text", tiny.data, "--against", other], "has a vocabulary of"),
        ([finished, "--tenths", tiny.data], "is already factorized: name the dense model"),
        (["maxilm"], "unknown model 'maxilm'"),
    ):
        assert main(["analyze", *map(str, words)]) == 2
        said = capsys.readouterr()
        assert told in said.err
        assert "Traceback" not in said.err
    assert (finished / "analysis.json").read_bytes() == before
