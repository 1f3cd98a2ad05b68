"""Texts without labels that the fine-tuned model answers."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import load_tokenizer
from lpaf_jax.data.examples import unlabelled
from lpaf_jax.runs.pipeline import compress
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages import Context, FineTune
from lpaf_jax.stages.base import Place
from lpaf_jax.stages.transfer import answers, unseen, with_transfer
from lpaf_jax.tasks.inputs import load_inputs
from tests.tiny import BAD, GOOD, Tiny

LINES = [f"a very {word} ending ." for word in GOOD + BAD]


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("transfer") / "run"
    compress(**tiny.chosen(out, recipe="svd", finetune_epochs=0.5))
    return out


def context(tiny: Tiny, run: Path) -> Context:
    settings = make_settings(**tiny.chosen(run, recipe="svd", finetune_epochs=0.5))
    nothing: Any = None
    finished = (Place(run / "stages" / "dense", FineTune()),)
    progress = Progress(run, quiet=True)
    return Context(load_inputs(settings), settings.training, progress, finished, nothing, "tune")


def test_the_teacher_gives_the_labels_and_held_texts_stay_out(
    tiny: Tiny, run: Path, tmp_path: Path
) -> None:
    where = context(tiny, run)
    held = where.inputs.task.test.texts[0], where.inputs.task.validation.texts[0]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*LINES, f"  {held[0].upper()} ", held[1]]) + "\n")
    found = with_transfer(where, file, 1000, run / "stages" / "dense")
    own = where.inputs.train
    assert len(found) == len(own) + len(LINES)
    np.testing.assert_array_equal(found.labels[: len(own)], own.labels)
    model, tokenizer = (
        load_model(run / "stages" / "dense"),
        load_tokenizer(run / "stages" / "dense"),
    )
    for i, (ids, _) in enumerate(tokenizer.encode(LINES, None, max_length=16)):
        assert found.ids[len(own) + i].tolist() == list(ids)
        logits = model(np.array([ids]))
        assert found.labels[len(own) + i] == int(np.argmax(logits))


def test_a_part_of_a_held_text_stays_out_however_it_is_written() -> None:
    held = "It starts well<br />, but the last hour of this film isn't worth your while. So long!"
    kept = ["a warm and funny film about nothing much at all", "so long"]
    out = [
        "But the last hour of this film isn't worth your while .",
        "the last hour of this film isn&#39;t worth",
        "well , but the last hour of this Film and more of my own",
        "a short one !",
    ]
    splits: Any = SimpleNamespace(
        task=SimpleNamespace(
            validation=SimpleNamespace(texts=[held]), test=SimpleNamespace(texts=["A short one"])
        )
    )
    assert unseen(splits, unlabelled([*out, *kept])).texts == kept


def test_values_of_a_regression_are_the_teachers_own() -> None:
    found = answers(np.array([[0.5], [-2.0]]), np.float32)
    np.testing.assert_array_equal(found, np.array([0.5, -2.0], np.float32))


def test_a_run_learns_from_them_and_knows_the_file_by_what_it_holds(
    tiny: Tiny, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["sentence"], *([line] for line in LINES)])
    chosen = tiny.chosen(
        tmp_path / "out", recipe="svd-ft", finetune_epochs=0.5, tune_epochs=0.5, transfer=file
    )
    compress(**chosen | {"reuse": run})
    assert f"{len(LINES)} texts from {file}" in (tmp_path / "out" / "logs" / "run.log").read_text()
    file.write_text("sentence\nthe plot is flat .\n")
    with pytest.raises(LpafError, match="holds another run .*transfer"):
        compress(**chosen | {"reuse": run})


def test_a_file_of_held_texts_alone_and_one_that_is_not_there(
    tiny: Tiny, run: Path, tmp_path: Path
) -> None:
    where = context(tiny, run)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(where.inputs.task.test.texts))
    with pytest.raises(LpafError, match="every text of --transfer is in the validation or test"):
        with_transfer(where, file, 10**6, run / "stages" / "dense")
    with pytest.raises(LpafError, match=r"transfer is .*nowhere\.txt, but there is no such file"):
        make_settings(**tiny.chosen(tmp_path, transfer=tmp_path / "nowhere.txt"))
