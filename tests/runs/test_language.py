"""The whole job on a text: what is learnt, what is said, and what goes on where it stopped."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import log_softmax

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import load_task
from lpaf_jax.evaluation.serve import evaluate_file, load_predictor
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.tasks.inputs import counts, fingerprint, length_note, load_inputs
from tests.tiny import Tiny, cut_back, fast, weights
from tests.tiny_decoder import LENGTH, VOCABULARY, write_decoder

pytestmark = pytest.mark.slow

STAGES = ["dense", "pruned", "factorized", "final"]
LANGUAGE: dict[str, Any] = fast("lpaf") | {
    "length": LENGTH,
    "finetune_epochs": 3.0,
    "finetune_lr": 1e-2,
}


def write_story(path: Path, count: int = 150, seed: int = 0) -> Path:
    """Paragraphs in which a word all but tells the next one."""
    random = np.random.default_rng(seed)
    after = np.random.default_rng(9).permutation(VOCABULARY)
    found = []
    for _ in range(count):
        word, words = int(random.integers(VOCABULARY)), []
        for _ in range(23):
            words.append(f"w{word}")
            word = int(after[word] if random.random() < 0.9 else random.integers(VOCABULARY))
        found.append(" ".join(words))
    path.write_text("\n\n".join(found))
    return path


class Place:
    """A tiny decoder and a text, with the arguments of a run on them."""

    def __init__(self, folder: Path) -> None:
        self.model = write_decoder(folder / "gpt2", "gpt2")
        self.text = write_story(folder / "story.txt")

    def chosen(self, out: Path, **changes: Any) -> dict[str, Any]:
        return {"model": self.model, "task": self.text, "out": out, **LANGUAGE, **changes}


@pytest.fixture(scope="module")
def place(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("language"))  # `tiny` sets how it is compiled


@pytest.fixture(scope="module")
def told(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run. Read it, never change it."""
    folder = tmp_path_factory.mktemp("told") / "run"
    compress(**place.chosen(folder))
    return folder


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def inputs_of(place: Place, **changes: Any) -> Any:
    return load_inputs(make_settings(**place.chosen(Path("unused"), **changes)))


def test_a_text_is_learnt_and_judged_by_its_perplexity(told: Path) -> None:
    metrics = read(told / "metrics.json")
    assert (metrics["kind"], metrics["metrics"]) == ("language", ["perplexity"])
    assert list(metrics["stages"]) == STAGES
    found = {name: figures["perplexity"] for name, figures in metrics["stages"].items()}
    assert found["dense"] < VOCABULARY / 2
    assert found["dense"] < found["factorized"]
    assert found["final"] < found["factorized"]
    assert metrics["retained"] is None
    assert "paired" not in metrics
    rows = [json.loads(row) for row in (told / "logs" / "train.jsonl").read_text().splitlines()]
    validated = [row["validation_perplexity"] for row in rows if "validation_perplexity" in row]
    assert validated[2] < 0.8 * validated[0]
    for name in ("story", "of 16 tokens", "perplexity"):
        assert name in (told / "report.html").read_text()
    assert "lpaf evaluate RUN --data TEXT.txt" in (told / "model" / "README.md").read_text()


def test_the_figure_is_that_of_every_window_by_itself(place: Place, told: Path) -> None:
    words = " ".join(load_task(str(place.text)).test.texts).split()
    ids = np.array([int(word[1:]) for word in words])
    windows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    metrics = read(told / "metrics.json")
    for stage in ("dense", "final"):
        model = load_model(told / ("model" if stage == "final" else "stages/dense"))
        log_p = log_softmax(np.asarray(model(windows), np.float64), axis=-1)
        lost = -np.take_along_axis(log_p[:, :-1], windows[:, 1:, None], axis=-1)
        figures = metrics["stages"][stage]
        assert figures["perplexity"] == pytest.approx(np.exp(lost.mean()), rel=1e-5)
        assert (figures["tokens"], figures["n"]) == (lost.size, len(windows))


def test_the_command_judges_the_run_in_the_same_windows(
    place: Place, told: Path, tmp_path: Path
) -> None:
    words = " ".join(load_task(str(place.text)).test.texts).split()
    (tmp_path / "test.txt").write_text(" ".join(words[: len(words) // LENGTH * LENGTH]))
    found = evaluate_file(told, tmp_path / "test.txt")
    metrics = read(told / "metrics.json")
    assert found["perplexity"] == pytest.approx(metrics["stages"]["final"]["perplexity"], rel=1e-5)
    assert found["length"] == LENGTH
    with pytest.raises(LpafError, match="is a language model"):
        load_predictor(told)
    reads = read(told / "model" / "config.json")["lpaf_reads"]
    assert reads == {"length": LENGTH, "metrics": ["perplexity"]}


def test_tied_embeddings_stay_tied(told: Path) -> None:
    for folder in (told / "model", told / "stages" / "dense"):
        names = load_file(folder / "model.safetensors")
        assert not any("lm_head" in name for name in names)
        model: Any = load_model(folder)
        assert model.lm_head is None


def test_a_run_cut_short_ends_as_an_unbroken_one(place: Place, told: Path, tmp_path: Path) -> None:
    folder = cut_back(told, tmp_path / "run", "factorized", "final")
    metrics = compress(**place.chosen(folder))
    assert weights(folder) == weights(told)
    assert metrics["stages"] == read(told / "metrics.json")["stages"]


def test_distillation_a_table_of_texts_and_a_narrow_tied_table(
    place: Place, tmp_path: Path
) -> None:
    rows = place.text.read_text().split("\n\n")
    (tmp_path / "rows.csv").write_text("\n".join(["body,label", *(f"{row},x" for row in rows)]))
    table = {"task": tmp_path / "rows.csv", "language_model": True, "text_column": "body"}
    more = {"finetune_epochs": 0, "distil": 0.5, "tune_epochs": 1.0, "embeddings": 16}
    metrics = compress(**place.chosen(tmp_path / "run", **table, **more))
    found = {name: figures["perplexity"] for name, figures in metrics["stages"].items()}
    assert found["final"] < found["factorized"]
    given, dense = (
        load_file(folder / "model.safetensors")
        for folder in (place.model, tmp_path / "run" / "stages" / "dense")
    )
    assert all((given[name] == dense[name]).all() for name in given)
    stored = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert stored["transformer.wte.codes.weight"].shape == (VOCABULARY, 16)
    assert not any(name.startswith(("lm_head", "transformer.wte.weight")) for name in stored)
    (tmp_path / "t.csv").write_text("body\n" + " ".join(rows[:3]) + "\n")
    # The column of the run is that of another file, too.
    assert math.isfinite(evaluate_file(tmp_path / "run", tmp_path / "t.csv")["perplexity"])


def test_a_limit_is_of_windows_and_all_is_said(place: Place) -> None:
    inputs = inputs_of(place)
    whole = counts(inputs)
    assert whole["train"] == len(inputs.train) > 100
    assert 0 < whole["left_out"] < 3 * LENGTH
    assert f"{whole['left_out']} tokens at the ends are left out" in str(length_note(inputs))
    limited = inputs_of(place, limit=9)
    assert counts(limited) == whole | {"train": 9}
    assert fingerprint(limited)["training examples"] != fingerprint(inputs)["training examples"]
    assert fingerprint(limited)["test examples"] == fingerprint(inputs)["test examples"]


def test_the_fingerprint_is_of_the_tokens(place: Place, tmp_path: Path) -> None:
    whole = fingerprint(inputs_of(place))
    path = tmp_path / "story.txt"
    path.write_text(place.text.read_text() + "\n")
    assert fingerprint(inputs_of(place, task=path)) == whole
    path.write_text(place.text.read_text().replace("w7 ", "w8 ", 1))
    assert fingerprint(inputs_of(place, task=path))["whole"] != whole["whole"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"length": LENGTH + 1}, r"length is 17.* reads at most 16 tokens"),
        (
            {"language_model": True, "task": "imdb"},
            "works only for files; imdb is a task with labels",
        ),
        ({"label_column": "label"}, "a language model reads text without labels"),
    ],
)
def test_what_cannot_be_is_told(place: Place, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(LpafError, match=told):
        inputs_of(place, **changes)


def test_an_encoder_learns_no_next_token(place: Place, tiny: Tiny) -> None:
    with pytest.raises(LpafError, match=r"is an encoder \(bert\).*: use a decoder \(gpt2, llama"):
        inputs_of(place, model=tiny.model)


def test_a_classifier_has_no_head_for_a_text_without_fine_tuning(
    place: Place, tmp_path: Path
) -> None:
    model = write_decoder(tmp_path / "gpt2", "gpt2")
    config = read(model / "config.json") | {"architectures": ["GPT2ForSequenceClassification"]}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(LpafError, match="needs a lm head: fine-tune it"):
        inputs_of(place, model=model, finetune_epochs=0)
