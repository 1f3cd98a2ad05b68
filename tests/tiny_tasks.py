"""Tasks of other kinds than the tiny classification, for the same tiny model, and a run of each."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import BAD, GOOD, NOUNS, Tiny, write_table

# A question of two words leaves room for eleven tokens of its context.
QUESTION, WINDOW = "is it", 16


def graded(count: int) -> list[tuple[str, str]]:
    """`count` different sentences, and how much they praise, from 0 to 4."""
    rng = np.random.default_rng(0)
    found: dict[str, str] = {}
    while len(found) < count:
        praise = rng.integers(0, 2, 4)
        words = [rng.choice(GOOD if good else BAD) for good in praise]
        text = f"the {words[0]} and {words[1]} {rng.choice(NOUNS)} is {words[2]} and {words[3]} ."
        found.setdefault(text, f"{praise.sum():.1f}")
    return list(found.items())


def context(rng: np.random.Generator, answer: str | None) -> str:
    """A text longer than a window that says of something, somewhere in it, that it is `answer`."""
    said = [f"the {rng.choice(NOUNS)} is the {rng.choice(NOUNS)} ." for _ in range(3)]
    if answer is not None:
        said.insert(int(rng.integers(0, 4)), f"this is {answer} .")
    return " ".join(said)


def write_squad(path: Path, count: int, unanswered: int = 0) -> Path:
    """`count` questions in the format of SQuAD, one in `unanswered` of them without an answer."""
    rng = np.random.default_rng(0)
    paragraphs = []
    for i in range(count):
        answer = None if unanswered and i % unanswered == 0 else str(rng.choice([*GOOD, *BAD]))
        text = context(rng, answer)
        asked = {"id": f"q{i}", "question": QUESTION, "is_impossible": answer is None}
        found = [] if answer is None else [{"text": answer, "answer_start": text.index(answer)}]
        paragraphs.append({"context": text, "qas": [asked | {"answers": found}]})
    path.write_text(json.dumps({"version": "tiny", "data": [{"paragraphs": paragraphs}]}))
    return path


@pytest.fixture(scope="session")
def graded_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run on a regression. Read it, never change it."""
    from lpaf_jax.runs.pipeline import compress

    folder = tmp_path_factory.mktemp("graded")
    task = write_table(folder / "praise.csv", graded(160))
    compress(**tiny.chosen(folder / "run", task=task, regression=True, finetune_epochs=4.0))
    return folder / "run"


@pytest.fixture(scope="session")
def asked_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run on questions, a third without an answer. Read it, no more."""
    from lpaf_jax.runs.pipeline import compress

    folder = tmp_path_factory.mktemp("asked")
    data = write_squad(folder / "questions.json", 120, unanswered=3)
    compress(**tiny.chosen(folder / "run", task="squad_v2", data=data, length=WINDOW))
    return folder / "run"
