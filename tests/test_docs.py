"""What README and docs tell people to type: Python that compiles, commands that are understood."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lpaf_jax.cli import app
from lpaf_jax.core.errors import LpafError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# What stands for a word of the reader's.
_PLACES = {
    "MODEL": "minilm",
    "TASK": "rotten_tomatoes",
    "RECIPE": "lpaf",
    "SHARE": "0.5",
    "NAME": "lpaf",
    "TEXT": "text.txt",
    "R": "8",
}
# Files of recipes, which are read to know what options there are.
_OWN = re.compile(r"\S+\.(py:\w+|ya?ml)")


class Piece(NamedTuple):
    """A piece of code on a page, in a block of its own or in a line of text."""

    page: str
    line: int
    text: str
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pieces(kind: str) -> Iterator[Piece]:
    """Fenced blocks of a language, and of none."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            if found[2] == kind:
                indent = len(found[1])
                body = "\n".join(line[indent:] for line in found[3].splitlines())
                yield Piece(page.name, text[: found.start(3)].count("\n") + 1, body)


def commands() -> Iterator[Piece]:
    """Every `lpaf ...` in a block, or in a line of text."""
    for piece in (*pieces(""), *pieces("sh"), *pieces("bash")):
        joined = piece.text.replace("\\\n", " ")
        for line in joined.splitlines():
            if line.startswith("lpaf "):
                yield piece._replace(text=line)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        bare = _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
        for found in _SPAN.finditer(bare):
            words = " ".join(found[1].split())
            if words.startswith("lpaf ") and "--" in words:
                yield Piece(page.name, bare[: found.start()].count("\n") + 1, words, whole=False)


@pytest.mark.parametrize("piece", list(pieces("python")), ids=str)
def test_python_compiles(piece: Piece) -> None:
    ast.parse(piece.text)


@pytest.mark.parametrize("piece", list(commands()), ids=str)
def test_a_command_is_understood(piece: Piece) -> None:
    if _OWN.search(piece.text) or "..." in piece.text:
        pytest.skip("names a file of the reader's, or leaves words out")
    words = [_PLACES.get(word, word) for word in shlex.split(piece.text, comments=True)[1:]]
    words = words[: words.index("<")] if "<" in words else words
    if "--help" in words:
        with pytest.raises(SystemExit) as stop:
            app._parse(words)
        assert stop.value.code == 0
        return
    try:
        assert app._parse(words) is not None
    except LpafError as error:
        # A line of text that is about one flag may leave out what every command needs.
        if piece.whole or not str(error).startswith("Missing from"):
            raise AssertionError(f"{piece.text}\n{error}") from None


def test_scripts_that_pages_name_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"\b(?:benchmarks|examples)/\w+\.(?:py|sh)", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"
        for name in re.findall(r"benchmarks/results/\w+\.(?:json|png)", page.read_text()):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_there_is_something_to_hold_them_to() -> None:
    assert len(list(pieces("python"))) > 5
    assert len(list(commands())) > 30


def test_every_method_is_in_the_table() -> None:
    from lpaf_jax.recipes import RECIPES

    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    text = "".join(line for line in lines if line.startswith("| "))
    ours = [name for name, make in RECIPES.items() if make.__module__.startswith("lpaf_jax.")]
    parts = re.compile(r"-step-\d$")  # one row has them all
    assert [name for name in ours if f"`{name}`" not in text and not parts.search(name)] == []
