"""The `lpaf` command."""

import dataclasses
import io
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import tyro
from tyro.conf import (
    DisallowNone,
    FlagCreatePairsOff,
    PositionalMetavarFromFieldName,
    subcommand,
)

from lpaf_jax import __version__
from lpaf_jax.cli.analyze import Analyze
from lpaf_jax.cli.bench import Bench
from lpaf_jax.cli.compare import Compare
from lpaf_jax.cli.doctor import Doctor
from lpaf_jax.cli.export import Export
from lpaf_jax.cli.generate import Generate
from lpaf_jax.cli.inspect import Inspect
from lpaf_jax.cli.intrinsic import Intrinsic
from lpaf_jax.cli.push import Push
from lpaf_jax.cli.recipes import Recipes
from lpaf_jax.cli.report import Report
from lpaf_jax.cli.serve import Evaluate, Predict
from lpaf_jax.core.errors import LpafError, SettingError, Terminated
from lpaf_jax.recipes import Recipe
from lpaf_jax.runs.settings import PRESETS, make_settings, recipe_of
from lpaf_jax.tasks.options import Options

_DESCRIPTION = (
    "Compress transformer checkpoints by low-rank factorization.\n\n"
    "`lpaf --version` prints the version."
)
# What tyro says of a word that is no number: the flag, the kind of number, the word.
_NO_NUMBER = re.compile(r"Error parsing (--[\w-]+): .*(int|float)\b[^:]*: (['\"].*['\"])")
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized options?:? *(--[\w-]+)")
# Seconds, more than a callback takes.
_AGAIN_AFTER = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        argv: None takes the words of this process, which a signal then ends here; else it returns
            in any case.

    Returns:
        0 on success, 2 on a mistake of the user, and what a shell reports of a program that a
        signal ended: 130 (SIGINT), 143 (SIGTERM), 141 (a pipe whose reader has left).
    """
    ends_here = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    command: Any = None
    try:
        with _signals(), _warnings_shown():
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
        if ends_here:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one finds us leaving
        what = "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated"
        resumes = isinstance(command, Options | Compare)
        more = "; run the same command again to resume" if resumes else ""
        print(f"lpaf: {what}{more}", file=sys.stderr)
        code = 130 if isinstance(stop, KeyboardInterrupt) else 143
        if ends_here:
            _leave(code)
        return code
    return 0


def _leave(code: int) -> None:
    """End the process at once, all that was to be cleaned up being clean.

    XLA may still compile or compute in threads of its own, which cannot be stopped: were the
    interpreter taken down under them, they would crash. Several processes take leave of each other
    as the interpreter ends.
    """
    processes = sys.modules.get("lpaf_jax.core.processes")
    if processes is not None and processes.are_several():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may be there to read
            stream.flush()
    os._exit(code)


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print what the modules of the package warn of, which they log."""
    logger, shown = logging.getLogger("lpaf_jax"), _Shown()
    logger.addHandler(shown)
    try:
        yield
    finally:
        logger.removeHandler(shown)


class _Shown(logging.Handler):
    """Warnings, each once: a command may read the same folder again and again.

    What comes by the package's own logger is in a run's log, and was printed if it was to be.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name != "lpaf_jax" and text not in self._said:
            self._said.add(text)
            print(f"warning: {text}", file=sys.stderr)


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, files closed, a line said; lose neither.

    What a signal raises inside of code that Python calls on its own goes nowhere, as that of JAX
    when garbage is collected: the signal is then sent again a moment later.
    """
    lost: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not lost:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def send_again() -> None:
        if lost:
            os.kill(os.getpid(), lost.pop())

    def unraisable(message: Any) -> None:
        number = {KeyboardInterrupt: signal.SIGINT, Terminated: signal.SIGTERM}.get(
            message.exc_type
        )
        if number is None:
            hook(message)
            return
        lost.append(number)
        again = threading.Timer(_AGAIN_AFTER, send_again)
        again.daemon = True
        again.start()

    if threading.current_thread() is not threading.main_thread():  # signals are not ours there
        yield
        return
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    ours = [signal.SIGTERM]
    # A shell starts a job in the background with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        ours.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    finally:
        lost.clear()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _parse(argv: list[str]) -> Any:
    """The command with its options; None where it was answered here."""
    if argv == ["--version"]:
        print(f"lpaf {__version__}")
        return None
    compresses = argv[:1] == ["compress"]
    argv = _with_out(argv) if compresses else argv
    recipe = _recipe_in(argv) if compresses else recipe_of(None, "", "standard")
    command, default = _compress_with(recipe, _word(argv, "--preset"))
    compress: Any = Annotated[
        command,
        subcommand(
            "compress",
            default=default,
            description=_about(recipe),
        ),
    ]
    commands = (
        compress
        | Annotated[Compare, subcommand("compare")]
        | Annotated[Recipes, subcommand("recipes")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Generate, subcommand("generate")]
        | Annotated[Inspect, subcommand("inspect")]
        | Annotated[Bench, subcommand("bench")]
        | Annotated[Analyze, subcommand("analyze")]
        | Annotated[Intrinsic, subcommand("intrinsic")]
        | Annotated[Export, subcommand("export")]
        | Annotated[Push, subcommand("push")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Doctor, subcommand("doctor")]
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
        if compresses and "--one-shot" in argv:
            raise LpafError(
                "--one-shot was removed: use --calibration without --task, and --recipe drone, "
                "kfac-svd, fwsvd or svd"
            ) from None
        message = _one_line(said.getvalue())
        if compresses and (foreign := _UNRECOGNIZED.search(message)):
            raise LpafError(
                f"recipe {recipe.name} has no option {foreign[1]}; see lpaf compress --recipe "
                f"{recipe.name} --help"
            ) from None
        raise LpafError(message) from None


def _word(argv: Sequence[str], flag: str) -> str | None:
    """What follows the last `flag`, which is read before all others."""
    given = [b for a, b in pairwise(argv) if a == flag]
    given += [a.partition("=")[2] for a in argv if a.startswith(f"{flag}=")]
    return given[-1] if given else None


# What tells runs apart by a name, in this order.
_NAMED = ("--task", "--calibration", "--recipe", "--preset", "--params", "--rank", "--seed")


def _with_out(argv: list[str]) -> list[str]:
    """The words of `compress` with an `--out`, where none is given: `runs/minilm-sst2-lpaf-0.25`.

    The same words have the same folder, so that a run that was killed goes on.
    """
    given = any(a == "--out" or a.startswith("--out=") for a in argv)
    if given or len(argv) < 2 or argv[1].startswith("-") or {"-h", "--help"} & set(argv):
        return argv
    said = [argv[1], *(word for flag in _NAMED if (word := _word(argv, flag)) is not None)]
    last = [re.split(r"[/:]", word.rstrip("/"))[-1] for word in said]
    # Without the ending of a file, which 0.25 has not.
    names = [re.sub(r"\.(?=[A-Za-z])\w+$", "", word) for word in last]
    parts = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    return [*argv, "--out", str(Path("runs", "-".join(parts)))]


def _recipe_in(argv: Sequence[str]) -> Recipe:
    """The recipe that `compress` is asked for: its stages decide what options there are."""
    task = any(a == "--task" or a.startswith("--task=") for a in argv)
    texts = any(a == "--calibration" or a.startswith("--calibration=") for a in argv)
    named, preset = _word(argv, "--recipe"), _word(argv, "--preset")
    known = preset if preset in PRESETS else "standard"
    return recipe_of(named, None if texts and not task else "", known)


def _compress_with(recipe: Recipe, preset: str | None) -> tuple[type[Options], Options]:
    """A class of the options and the settings of the stages of `recipe`, and its defaults."""
    kinds = list(dict.fromkeys(type(stage) for stage in recipe.stages))
    # Of a stage and one that extends it, the second has all fields.
    kinds = [k for k in kinds if not any(o is not k and issubclass(o, k) for o in kinds)]
    command = dataclasses.make_dataclass(
        "Compress", [], bases=(*reversed(kinds), Options), frozen=True
    )
    missing = tyro.MISSING
    known = preset if preset in PRESETS else "standard"
    values = recipe.settings() | {"preset": known}
    return command, command(model=missing, out=missing, **values)


def _about(recipe: Recipe) -> str:
    """What `lpaf compress --help` begins with: paragraphs of a line each, which fit a terminal."""
    return "\n\n".join(
        (
            f"Compress a model with a recipe, here {recipe.name}; resume it if it was interrupted.",
            "`--recipe NAME --help` shows its options; `lpaf recipes` lists all recipes.",
            "`--preset quick --help` shows the defaults of that preset.",
            "With --calibration instead of --task, a model is compressed without training.",
        )
    )


def _one_line(box: str) -> str:
    """What a box of tyro's says, without its frame, the help texts and the advice below."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:
        text = line[2:].rstrip(" │|")  # frames are drawn, or spaces, as the encoding allows
        if set(text) <= set(" ─-╯"):
            sections.append([])
        elif not text.startswith(" " * 8):  # so deep stands the help of an option
            sections[-1].append(text.strip())
    message = [" ".join(lines) for lines in sections]
    advice = ("For full helptext", "Argument helptext", "Available subcommands")
    said = "; ".join(text.rstrip(".") for text in message if text and not text.startswith(advice))
    if wrong := _NO_NUMBER.fullmatch(said):
        flag, kind, word = wrong.groups()
        said = f"{flag} is {word}, but must be a {'whole number' if kind == 'int' else 'number'}"
    return f"{said}; see lpaf COMMAND --help"


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
    if isinstance(command, Options):
        _compress(command)
    else:
        command.run()


def _compress(given: Options) -> None:
    from rich.console import Console

    from lpaf_jax.core.processes import is_first
    from lpaf_jax.report import print_results
    from lpaf_jax.runs.pipeline import run

    # What the recipe has already is not said again: of two stages of a kind, each has its own.
    known = recipe_of(given.recipe, given.task, given.preset).settings()
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    settings = make_settings(**{n: v for n, v in values.items() if n not in known or v != known[n]})
    metrics = run(settings)
    if not settings.quiet and is_first():
        console = Console(highlight=False, markup=False, emoji=False)
        print_results(metrics, console)
        console.print(f"Model: {settings.out / 'model'}", soft_wrap=True)
        console.print(f"Report: {settings.out / 'report.html'}", soft_wrap=True)
