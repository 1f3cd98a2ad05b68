"""`lpaf evaluate` and `lpaf predict`."""

import io
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName

_LENGTH = arg(metavar="INT", help_behavior_hint="(default: the length used in training)")
_BATCH = arg(metavar="INT", help_behavior_hint="(default: 32; 1 for a language model)")
_STRIDE = arg(metavar="INT", help_behavior_hint="(default: the length)")


def _column(default: str) -> Any:
    return arg(metavar="NAME", help_behavior_hint=default)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a saved model with the official metrics; prints one JSON object.

    A language model is evaluated by its perplexity on a text.
    """

    dir: Positional[Path]
    """Folder of a run or of a model, a .gguf file, or `smollm2`."""
    data: Annotated[Path, arg(metavar="FILE")]
    """Table (.json, .csv, .tsv, .jsonl or .parquet), questions in SQuAD format, or text file."""
    stage: StageName = "final"
    """Stage whose model is used, if DIR is a run."""
    text_column: Annotated[str | None, _column("(default: the run's, else sentence)")] = None
    """Column of the text; the default for a language model is `text`."""
    label_column: Annotated[str | None, _column("(default: the run's, else label)")] = None
    """Column of the label: a class name or number, or the value for a regression."""
    pair_column: Annotated[str | None, _column("(default: the run's)")] = None
    """Column of the second text, for a task on text pairs."""
    batch: Annotated[int | None, _BATCH] = None
    """Texts per batch; for a language model, windows."""
    length: Annotated[int | None, _LENGTH] = None
    """Maximum length in tokens; longer texts are truncated, or read in windows of this length."""
    stride: Annotated[int | None, _STRIDE] = None
    """Tokens between the starts of two windows, for a language model."""

    def run(self) -> None:
        """Evaluate and print."""
        from lpaf_jax.core.files import json_text
        from lpaf_jax.core.progress import Ticker
        from lpaf_jax.evaluation.serve import evaluate_file

        with closing(Ticker()) as ticker:
            ticker.busy(f"reading {self.dir}")
            result = evaluate_file(
                self.dir,
                self.data,
                stage=self.stage,
                text_column=self.text_column,
                label_column=self.label_column,
                pair_column=self.pair_column,
                batch=self.batch,
                length=self.length,
                stride=self.stride,
                on_batch=partial(ticker.batch, str(self.data)),
            )
        print(json_text(result))


@dataclass(frozen=True)
class Predict:
    """Predict each line of standard input; print `label <tab> probability <tab> text`.

    For text pairs, separate the two texts of a line with a tab.

    A regression model prints `value <tab> text`.

    For `question <tab> context`, it prints the answer, its score, and the line.

    The answer is empty if the model (SQuAD v2) finds none.
    """

    dir: Positional[Path]
    """Folder of a run or of a model."""
    stage: StageName = "final"
    """Stage whose model is used, if DIR is a run."""
    batch: int = 32
    """Lines per batch; on a terminal each line is answered at once."""
    length: Annotated[int | None, _LENGTH] = None
    """Maximum length in tokens; longer texts are truncated, or read in windows of this length."""

    def run(self) -> None:
        """Answer line after line."""
        from lpaf_jax.evaluation.serve import load_predictor

        predictor = load_predictor(self.dir, stage=self.stage, length=self.length)
        for stream in (sys.stdin, sys.stdout):
            # whatever the locale; bad bytes do not stop it
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="replace")
        batch = 1 if sys.stdin.isatty() else self.batch
        lines = (line.rstrip("\r\n") for line in sys.stdin)
        for said in predictor.predict(lines, batch=batch):
            print(said.line, flush=True)
