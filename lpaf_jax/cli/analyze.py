"""`lpaf analyze`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lpaf_jax.core.errors import LpafError
from lpaf_jax.tasks.options import Copy, LabelColumn, PairColumn, TextColumn


@dataclass(frozen=True)
class Analyze:
    """Show the effective rank of a model's matrices and of their inputs and outputs.

    Inputs and outputs (features) need texts: give --task or --text.

    For the intrinsic dimension of a task, see `lpaf intrinsic`.
    """

    model: Positional[str]
    """`minilm`, `smollm2`, a folder of a model or of a run, a .gguf file, or a hub id."""
    task: Annotated[str | None, arg(metavar="TASK", help_behavior_hint="(optional)")] = None
    """Task whose training texts give the features; as for compress."""
    text: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """File of texts instead of a task: .txt, or json, csv, tsv, jsonl or parquet."""
    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    data: Copy = None
    texts: int = 256
    """Maximum number of texts."""
    length: int = 128
    """Maximum length in tokens; longer texts are truncated."""
    against: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(optional)")] = None
    """Model to compare hidden states with, for example the dense model of a compressed one."""
    tenths: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """File to evaluate the model on with each tenth of its singular values removed in turn."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(optional)")] = None
    """Folder to write analysis.json, spectra.png and analysis.html to."""

    def run(self) -> None:
        """Analyse, print, and write."""
        from rich.console import Console

        from lpaf_jax.evaluation.analysis import analyse_model
        from lpaf_jax.report.spectra import print_spectra, write_spectra

        out = self.out
        if out is not None and (out / "settings.json").is_file():
            raise LpafError(
                f"{out} is the folder of a run, which has an analysis of its own: name another"
            )
        found = analyse_model(
            self.model,
            task=self.task,
            text=self.text,
            text_column=self.text_column,
            label_column=self.label_column,
            pair_column=self.pair_column,
            data=self.data,
            texts=self.texts,
            length=self.length,
            against=self.against,
            tenths=self.tenths,
            say=Console(stderr=True, highlight=False, markup=False, emoji=False).print,
        )
        console = Console(highlight=False, markup=False, emoji=False)
        print_spectra(found, console)
        if out is not None:
            for path in write_spectra(found, out):
                console.print(str(path), soft_wrap=True)
