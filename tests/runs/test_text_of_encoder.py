"""A fine-tuned encoder that a text without labels compresses, in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, records_of
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.data import load_tokenizer
from lpaf_jax.evaluation.serve import load_predictor
from lpaf_jax.models import parameters
from lpaf_jax.runs.pipeline import compress
from tests.closed_forms import nearest
from tests.tiny import BAD, GOOD, NOUNS, Tiny

LINES = [f"the {noun} is very {word} ." for noun in NOUNS for word in GOOD + BAD]
Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A classifier, and a text."""
    place = tmp_path_factory.mktemp("encoder")
    chosen = tiny.chosen(place / "tuned", recipe="svd", finetune_epochs=0.5)
    compress(**chosen)
    text = place / "text.txt"
    text.write_text("\n".join(LINES) + "\n")
    return place / "tuned" / "stages" / "dense", text


def run(folders: Folders, out: Path, **chosen: Any) -> dict[str, Any]:
    given = {"samples": 40, "params": 0.5, "recipe": "drone", "quiet": True} | chosen
    return compress(folders[0], calibration=folders[1], out=out, **given)


def hidden(folder: Path, lines: list[str]) -> list[np.ndarray]:
    """The last hidden states of each line alone."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rows = tokenizer.encode(lines, None, max_length=32)
    return [np.asarray(model.with_hidden(np.array([ids]))[1][-1][0], np.float64) for ids, _ in rows]


def test_its_figures_are_those_of_the_folder_it_leaves(folders: Folders, tmp_path: Path) -> None:
    judged = tmp_path / "judged.txt"
    judged.write_text("\n".join(LINES[::7]))
    found = run(folders, tmp_path / "run", held_out=judged)
    pairs = zip(
        hidden(folders[0], LINES[::7]), hidden(tmp_path / "run" / "model", LINES[::7]), strict=True
    )
    cosines = [
        np.sum(x * y, 1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1) for x, y in pairs
    ]
    assert found["stages"]["final"]["similarity"] == pytest.approx(
        float(np.concatenate(cosines).mean()), abs=1e-4
    )
    assert found["retained"] == found["stages"]["final"]["similarity"] > 0.8
    assert found["encoder_params_ratio"] <= 0.5
    assert found["judged_by"] == "held-out text"
    model = load_model(tmp_path / "run" / "model")
    assert {path: r["rank"] for path, r in records_of(model).items()} == found["ranks"]
    [(_, label, _)] = load_predictor(tmp_path / "run").predict(["the film is very good ."])
    assert label in ("negative", "positive")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "between the last hidden states" in page
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Similarity was measured on" in card


def test_each_matrix_is_nearest_in_its_outputs(folders: Folders, tmp_path: Path) -> None:
    """The first layer's query reads the embeddings, which float64 has from the states."""
    found = run(folders, tmp_path / "run", samples=10**6)
    assert found["judged_by"] == "end of the calibration text"
    model, tokenizer = load_model(folders[0]), load_tokenizer(folders[0])
    held_out = min(32, len(LINES) // 10)
    rows = tokenizer.encode(LINES[:-held_out], None, max_length=32)
    x = np.concatenate(
        [np.asarray(model.with_hidden(np.array([ids]))[1][0][0], np.float64) for ids, _ in rows]
    )
    path = "bert.encoder.layer.0.attention.self.query.kernel"
    w = np.asarray(parameters(model)[path], np.float64)
    after = parameters(load_model(tmp_path / "run" / "model"))
    place = path.removesuffix(".kernel")
    product = np.asarray(after[f"{place}.a"]) @ np.asarray(after[f"{place}.b"])
    expected = nearest(w, found["ranks"][place], x.T @ x / len(x))
    np.testing.assert_allclose(x @ product, x @ expected, atol=2e-3)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"recipe": None},
            "'all' .* works only for a decoder .*: use a recipe that keeps .*, such as drone",
        ),
        ({"recipe": "kfac-svd"}, "importance 'two-sided' needs gradients, .* use --recipe drone"),
        ({"ranks": "loss"}, "ranks 'loss' needs gradients"),
        ({"nf4": True}, "nf4 without a task, works only for decoders: give --task"),
        ({"length": 33}, "length is 33, but the model reads at most 32"),
    ],
)
def test_what_an_encoder_cannot_give(
    folders: Folders, tmp_path: Path, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises((LpafError, SettingError), match=message):
        run(folders, tmp_path / "run", **chosen)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_done_again(folders: Folders, tmp_path: Path) -> None:
    first = run(folders, tmp_path / "run", recipe="afm")
    assert run(folders, tmp_path / "run", recipe="afm")["finished"] == first["finished"]
    folders[1].touch()
    with pytest.raises(LpafError, match="holds another run"):
        run(folders, tmp_path / "run", recipe="awsvd")
