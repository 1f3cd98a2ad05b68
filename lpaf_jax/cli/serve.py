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

_LENGTH = arg(metavar="INT", help_behavior_hint="(default: what it was trained with)")
_BATCH = arg(metavar="INT", help_behavior_hint="(default: 32; 1 window of a language model)")
_STRIDE = arg(metavar="INT", help_behavior_hint="(default: the length)")


def _column(default: str) -> Any:
    return arg(metavar="NAME", help_behavior_hint=default)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a saved model by the official metrics; prints one JSON object.

    A language model is judged by its perplexity of a text.
    """

    dir: Positional[Path]
    """Folder of a run or of a model, a .gguf file, or `smollm2`."""
    data: Annotated[Path, arg(metavar="FILE")]
    """A table (.json, .csv, .tsv, .jsonl or .parquet), questions as those of SQuAD, or a text."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    text_column: Annotated[str | None, _column("(default: the run's, else sentence)")] = None
    """Column of the text; for a language model, text unless given."""
    label_column: Annotated[str | None, _column("(default: the run's, else label)")] = None
    """Column of the label: the name of a class or its number; for a regression, the value."""
    pair_column: Annotated[str | None, _column("(default: the run's)")] = None
    """Column of the second text, for a task about pairs."""
    batch: Annotated[int | None, _BATCH] = None
    """Texts at a time; of a language model, windows, whose logits are held."""
    length: Annotated[int | None, _LENGTH] = None
    """Longest text in tokens; what is longer is cut, or read in windows of this length."""
    stride: Annotated[int | None, _STRIDE] = None
    """Of a language model: from one window of a text to the next, in tokens."""

    def run(self) -> None:
        """Evaluate and print."""
        from lpaf_jax.core.files import json_text
        from lpaf_jax.core.progress import Ticker
        from lpaf_jax.evaluation.serve import evaluate_file

        with closing(Ticker()) as ticker:
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
    """Answer each line of standard input; prints `label <tab> probability <tab> text`.

    A model of text pairs reads both from one line, with a tab between them.

    A regression prints `value <tab> text`.

    To `question <tab> context` the answer is printed, its score, and the line.

    The answer is empty where a model that may find none finds none.
    """

    dir: Positional[Path]
    """Folder of a run or of a model."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    batch: int = 32
    """Lines read before the first of them is answered; on a terminal each is answered at once."""
    length: Annotated[int | None, _LENGTH] = None
    """Longest text in tokens; what is longer is cut, or read in windows of this length."""

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
