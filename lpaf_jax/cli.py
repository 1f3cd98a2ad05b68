"""The `lpaf` command."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, subcommand

from lpaf_jax.errors import LpafError
from lpaf_jax.settings import PRESETS, Settings

StageName = Literal["dense", "pruned", "factorized", "final"]


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a saved model on a file of labelled texts; prints one JSON object."""

    dir: Positional[Path]
    """Folder of a run, or of a model."""
    data: Path
    """A .csv or .tsv file."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    text_column: str = "sentence"
    """Column of the text."""
    label_column: str = "label"
    """Column of the label."""
    pair_column: str | None = None
    """Column of the second text, for a task about pairs."""
    batch: int = 32
    """Texts at a time."""
    length: int | None = None
    """Longest text in tokens; the run's own where it is not given."""


@dataclass(frozen=True)
class Predict:
    """Label each line of standard input: `label <tab> probability <tab> text`."""

    dir: Positional[Path]
    """Folder of a run, or of a model."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    batch: int = 32
    """Texts at a time."""
    length: int | None = None
    """Longest text in tokens; the run's own where it is not given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 on success, 2 on a mistake of the user, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = _parse(argv)
    _silence()
    try:
        if isinstance(command, Settings):
            _compress(command)
        elif isinstance(command, Evaluate):
            _evaluate(command)
        else:
            _predict(command)
    except LpafError as error:
        print(f"lpaf: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lpaf: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


def _parse(argv: list[str]) -> Any:
    # The preset is read first, so that `--help` and the flags left out show its values.
    given = [b for a, b in zip(argv, [*argv[1:], ""], strict=True) if a == "--preset"]
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
            description="Fine-tune, prune, factorize and tune a model; continue if it was killed.",
        ),
    ]
    commands = (
        compress
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Predict, subcommand("predict")]
    )
    return tyro.cli(commands, args=argv, prog="lpaf")


def _silence() -> None:
    """Keep libraries from talking over the progress; set before any of them is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _compress(settings: Settings) -> None:
    from rich.console import Console

    from lpaf_jax.pipeline import run
    from lpaf_jax.report import result_table, summary_line

    metrics = run(settings)
    if not settings.quiet:
        console = Console()
        console.print(result_table(metrics))
        console.print(summary_line(metrics), highlight=False)
        console.print(f"Report: {settings.out / 'report.html'}", highlight=False, soft_wrap=True)


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
    lines = (line.rstrip("\n") for line in sys.stdin)
    for text, label, probability in classifier.predict(lines, batch=command.batch):
        print(f"{label}\t{probability:.4f}\t{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
