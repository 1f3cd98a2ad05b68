"""The `lpaf` command."""

import io
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import (
    DisallowNone,
    FlagCreatePairsOff,
    Positional,
    PositionalMetavarFromFieldName,
    arg,
    subcommand,
)

from lpaf_jax import __version__
from lpaf_jax.errors import LpafError, SettingError, Terminated
from lpaf_jax.settings import PRESETS, Settings

StageName = Literal["dense", "pruned", "factorized", "final"]
_DESCRIPTION = (
    "Compress a BERT classifier by low-rank factorization of pruned weights.\n\n"
    "`lpaf --version` prints the version."
)
# What tyro says of a word that is no number: the flag, the kind of number, the word.
_NO_NUMBER = re.compile(r"Error parsing (--[\w-]+): .*(int|float)\b[^:]*: (['\"].*['\"])")
_LENGTH = arg(metavar="INT", help_behavior_hint="(default: what it was trained with)")


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a saved model on a file of labelled texts; prints one JSON object."""

    dir: Positional[Path]
    """Folder of a run, or of a model."""
    data: Annotated[Path, arg(metavar="FILE")]
    """A .csv or .tsv file with a header row."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    text_column: Annotated[str, arg(metavar="NAME")] = "sentence"
    """Column of the text."""
    label_column: Annotated[str, arg(metavar="NAME")] = "label"
    """Column of the label: the name of a class, or its number."""
    pair_column: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(optional)")] = None
    """Column of the second text, for a task about pairs."""
    batch: int = 32
    """Texts at a time."""
    length: Annotated[int | None, _LENGTH] = None
    """Longest text in tokens; what is longer is cut."""


@dataclass(frozen=True)
class Predict:
    """Label each line of standard input; prints `label <tab> probability <tab> text`.

    A model of text pairs reads both from one line, with a tab between them.
    """

    dir: Positional[Path]
    """Folder of a run, or of a model."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    batch: int = 32
    """Lines read before the first of them is answered; on a terminal each is answered at once."""
    length: Annotated[int | None, _LENGTH] = None
    """Longest text in tokens; what is longer is cut."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Returns:
        0 on success, 2 on a mistake of the user, and what a shell reports of a program that a
        signal ended: 130 (SIGINT), 143 (SIGTERM), 141 (a pipe whose reader has left).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    command: Any = None
    try:
        with _sigterm():
            command = _parse(argv)
            if command is not None:
                _set_environment()
                _run(command)
                sys.stdout.flush()
    except SettingError as error:
        flags = (f"--{name.replace('_', '-')}" for name in error.names)
        print(f"lpaf: error: {' and '.join(flags)} {error.rest}", file=sys.stderr)
        return 2
    except LpafError as error:
        print(f"lpaf: error: {error}", file=sys.stderr)
        return 2
    except PermissionError as error:  # met while looking whether a path is there
        print(f"lpaf: error: {error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (KeyboardInterrupt, Terminated) as stop:
        what = "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated"
        more = "; run the same command again to go on" if isinstance(command, Settings) else ""
        print(f"lpaf: {what}{more}", file=sys.stderr)
        return 130 if isinstance(stop, KeyboardInterrupt) else 143
    return 0


@contextmanager
def _sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does: files closed, a line said."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread: signals are not ours there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: list[str]) -> Any:
    """The command with its options; None where it was answered here."""
    if argv == ["--version"]:
        print(f"lpaf {__version__}")
        return None
    # The preset is read first, so that `--help` and the flags left out show its values.
    given = [b for a, b in pairwise(argv) if a == "--preset"]
    given += [a.partition("=")[2] for a in argv if a.startswith("--preset=")]
    preset = given[-1] if given and given[-1] in PRESETS else "standard"
    values: dict[str, Any] = PRESETS[preset] | {"preset": preset}
    missing = tyro.MISSING
    default = Settings(model=missing, task=missing, out=missing, **values)
    compress = Annotated[
        Settings,
        subcommand(
            "compress",
            default=default,
            description=(
                "Fine-tune, prune, factorize and tune a model; continue if it was killed.\n\n"
                "With `--preset quick --help`, the defaults shown are those of quick."
            ),
        ),
    ]
    commands = (
        compress
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Predict, subcommand("predict")]
    )
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                commands,
                args=argv,
                prog="lpaf",
                description=_DESCRIPTION,
                config=(DisallowNone, FlagCreatePairsOff, PositionalMetavarFromFieldName),
            )
    except SystemExit as stop:
        if stop.code != 2:
            raise
        raise LpafError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """What a box of tyro's says, without its frame, the help texts and the advice below."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line[2:].rstrip(" │|")  # frames are drawn, or spaces, as the encoding allows
        if set(text) <= set(" ─-╯"):
            sections.append([])
        elif not text.startswith(" " * 8):  # so deep stands the help of an option
            sections[-1].append(text.strip())
    told = [" ".join(lines) for lines in sections]
    advice = ("For full helptext", "Argument helptext", "Available subcommands")
    said = "; ".join(text.rstrip(".") for text in told if text and not text.startswith(advice))
    if wrong := _NO_NUMBER.fullmatch(said):
        flag, kind, word = wrong.groups()
        said = f"{flag} is {word}, but must be a {'whole number' if kind == 'int' else 'number'}"
    return f"{said}; lpaf COMMAND --help lists what there is"


def _set_environment() -> None:
    """What libraries read when they are imported, which is why it is set before."""
    # XLA has threads of its own; on busy cores those of OpenBLAS make an SVD ten times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # The progress is ours to show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Orbax logs through absl, which sends all logs to the screen where nobody handles them.
    logging.getLogger().addHandler(logging.NullHandler())


def _run(command: Any) -> None:
    if isinstance(command, Settings):
        _compress(command)
    elif isinstance(command, Evaluate):
        _evaluate(command)
    else:
        _predict(command)


def _compress(settings: Settings) -> None:
    from rich.console import Console

    from lpaf_jax.pipeline import run
    from lpaf_jax.processes import is_first
    from lpaf_jax.report import print_results

    metrics = run(settings)
    if not settings.quiet and is_first():
        console = Console(highlight=False, markup=False, emoji=False)
        print_results(metrics, console)
        console.print(f"Report: {settings.out / 'report.html'}", soft_wrap=True)


def _evaluate(command: Evaluate) -> None:
    from lpaf_jax.serve import evaluate_file

    result = evaluate_file(
        command.dir,
        command.data,
        stage=command.stage,
        text_column=command.text_column,
        label_column=command.label_column,
        pair_column=command.pair_column,
        batch=command.batch,
        length=command.length,
    )
    print(json.dumps(result))


def _predict(command: Predict) -> None:
    from lpaf_jax.serve import load_classifier

    classifier = load_classifier(command.dir, stage=command.stage, length=command.length)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale; bad bytes do not stop it
            stream.reconfigure(encoding="utf-8", errors="replace")
    batch = 1 if sys.stdin.isatty() else command.batch
    lines = (line.rstrip("\r\n") for line in sys.stdin)
    for text, label, probability in classifier.predict(lines, batch=batch):
        print(f"{label}\t{probability:.4f}\t{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
