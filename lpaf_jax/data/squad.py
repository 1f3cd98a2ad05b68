"""Questions about contexts, answered by a span of the context or by nothing: SQuAD.

P. Rajpurkar et al., SQuAD: 100,000+ questions for machine comprehension of text, 2016.
P. Rajpurkar et al., Know what you don't know: unanswerable questions for SQuAD, 2018.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.contents import check_unpacked
from lpaf_jax.data.examples import Examples
from lpaf_jax.data.published import Splits, from_folder, from_hub, read_columns
from lpaf_jax.data.values import TWICE, Columns, json_object

# Task name to its place on the hub and the version in the names of the official files.
SQUAD = {
    "squad": ("rajpurkar/squad", "v1.1"),
    "squad_v2": ("rajpurkar/squad_v2", "v2.0"),
}


@dataclass(frozen=True)
class Questions(Examples):
    """Questions with their contexts.

    Attributes:
        texts: n questions.
        pairs: n contexts.
        labels: (n, 2) int32, where the first answer begins in its context and where it is over, in
            characters; (-1, -1) for a question without an answer.
        ids: n names that the data set gives to its questions.
        answers: for each question every answer that counts as right; none if it has no answer.
    """

    pairs: list[str]
    ids: list[str]
    answers: list[list[str]]

    def take(self, positions: np.ndarray) -> "Questions":
        """The questions at `positions`, in that order."""
        chosen = [int(i) for i in positions]
        return Questions(
            texts=[self.texts[i] for i in chosen],
            pairs=[self.pairs[i] for i in chosen],
            labels=self.labels[chosen],
            ids=[self.ids[i] for i in chosen],
            answers=[self.answers[i] for i in chosen],
        )


def squad(name: str, data: str | Path | None = None) -> tuple[Questions, Questions]:
    """The official training and validation questions of SQuAD, as they are.

    Args:
        name: a key of `SQUAD`.
        data: a local copy instead of the hub: a folder with the official files
            (train-v1.1.json and dev-v1.1.json, or those of v2.0), one that `datasets` saved, or
            one with parquet files named after the splits.

    Raises:
        LpafError: the hub cannot be reached, the copy is missing, incomplete or unreadable, or
            `squad` has a question without an answer.
    """
    hub_id, version = SQUAD[name]
    if data is None:
        splits = from_hub(name, hub_id)
    else:
        stems = {
            "train": (f"train-{version}", "train"),
            "validation": (f"dev-{version}", "validation", "dev"),
        }
        splits = from_folder(Path(data), stems, _read_file, (".json", ".parquet"))
    where = hub_id if data is None else str(data)
    train, held = (_split(name, splits, split, where) for split in ("train", "validation"))
    return train, held


def read_squad(path: str | Path) -> Questions:
    """The questions of a file in the format of SQuAD, v1.1 or v2.0, in the order of the file.

    Raises:
        LpafError: the file is missing, is no JSON or not of this format.
    """
    return _questions(_json_columns(Path(path)), str(path))


def _split(name: str, splits: Splits, split: str, where: str) -> Questions:
    where = f"{where}, split {split}"
    questions = _questions(splits(split), where)
    check_answered(name, questions, where)
    return questions


def check_answered(name: str, questions: Questions, where: str) -> None:
    """Raise LpafError if a question of SQuAD v1.1 has no answer."""
    without = [i for i, answers in enumerate(questions.answers) if not answers]
    if name == "squad" and without:
        raise LpafError(
            f"{where}: {len(without)} of {len(questions)} questions have no answer, such as "
            f"{questions.ids[without[0]]!r}; use the task squad_v2"
        )


def _read_file(path: Path) -> Columns:
    return _json_columns(path) if path.suffix == ".json" else read_columns(path)


def _json_columns(path: Path) -> Columns:
    """The official nesting as the hub's columns."""
    check_unpacked(path)
    try:
        held = json.loads(path.read_bytes(), object_pairs_hook=_object)
        rows = list(_flat(held["data"]))
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LpafError(f"{path} cannot be read as JSON: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise LpafError(
            f"{path} is not in SQuAD format ({type(error).__name__}: {error}); it needs data, "
            "paragraphs, context, qas, id, question and answers"
        ) from None
    names = ("id", "question", "context", "answers")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return Columns(names, columns.__getitem__)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = json_object(pairs)
    for name, value in found.items():
        if value is TWICE:
            raise ValueError(f"an object has two values named {name!r}")
    return found


def _flat(articles: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, Any]]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                # v2.0 lists wrong answers apart, as plausible_answers.
                impossible = asked.get("is_impossible", False)
                if not isinstance(impossible, bool):
                    raise ValueError(
                        f"question {asked['id']!r} has is_impossible {impossible!r}, which must be "
                        "true or false"
                    )
                answers = [] if impossible else asked["answers"]
                yield asked["id"], asked["question"], paragraph["context"], answers


def _questions(columns: Columns, where: str) -> Questions:
    for name in ("id", "question", "context", "answers"):
        if name not in columns:
            raise LpafError(f"{where}: no column {name!r}; the columns are {', '.join(columns)}")
        if any(value is None for value in columns[name]):
            raise LpafError(f"{where}: a value is missing in column {name!r}")
    ids = [str(value) for value in columns["id"]]
    for name in ("question", "context"):
        for i, value in enumerate(columns[name]):
            if not isinstance(value, str):
                raise LpafError(
                    f"{where}, question {ids[i]!r}: its {name} is {value!r:.40}, which is not text"
                )
    contexts = list(columns["context"])
    answers: list[list[str]] = []
    spans = np.full((len(ids), 2), -1, dtype=np.int32)
    for i, given in enumerate(columns["answers"]):
        texts, starts = _answers(given, len(contexts[i]), f"{where}, question {ids[i]!r}")
        answers.append(texts)
        if texts:
            spans[i] = starts[0], starts[0] + len(texts[0])
    return Questions(
        texts=list(columns["question"]),
        pairs=contexts,
        labels=spans,
        ids=ids,
        answers=answers,
    )


def _answers(given: Any, length: int, where: str) -> tuple[list[str], list[int]]:
    """Texts and starts: of a mapping of two lists, as on the hub, or of a list of mappings."""
    names = ("text", "answer_start")
    try:
        if isinstance(given, Mapping):
            texts, starts = (list(given[name]) for name in names)
        else:
            texts, starts = ([answer[name] for answer in given] for name in names)
    except (KeyError, TypeError):
        texts, starts = [None], []
    if len(texts) != len(starts) or not all(isinstance(text, str) for text in texts):
        raise LpafError(f"{where}: each answer needs a text and an answer_start")
    for start in starts:
        if isinstance(start, bool) or not isinstance(start, int):
            raise LpafError(f"{where}: answer_start is {start!r}, but must be a whole number")
        if not 0 <= start < length:
            raise LpafError(
                f"{where}: answer_start is {start}, but the context has {length} characters"
            )
    return texts, starts


def misplaced(questions: Questions) -> int:
    """How many questions have a first answer that is not what the context holds at its start.

    Spaces around either do not count. The official data have none; copies that `datasets` saved
    before July 2021 do, as spaces before contexts were lost (its issue 2585).
    """
    rows = zip(questions.pairs, questions.labels, questions.answers, strict=True)
    return sum(
        bool(answers) and context[start:end].strip() != answers[0].strip()
        for context, (start, end), answers in rows
    )
