"""`lpaf export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName
from lpaf_jax.core.errors import LpafError, SettingError


@dataclass(frozen=True)
class Export:
    """Write a finished model in the format of other tools; prints the sizes of both.

    Factors stay factors, except in a dense checkpoint.
    """

    dir: Positional[Path]
    """Folder of a run, or of a model; of an adapter, where that is merged."""
    format: Literal["dense", "factorized", "stablehlo", "onnx", "adapter", "merged"]
    """dense: factors multiplied back, a plain Hugging Face checkpoint that any tool loads;
    factorized: the same folder with its numbers in another `--dtype`;
    stablehlo: a program of `jax.export` that runs with jax alone, on CPU, GPU and TPU;
    onnx: a graph, through PyTorch's exporter, which needs torch, onnx and onnxscript;
    adapter: what a run with `--lora` trained, as a folder of PEFT for the model before it;
    merged: DIR is a folder of PEFT, and its adapter is added to its base model."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder to write; it must be new or empty."""
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        arg(help_behavior_hint="(default: as it is stored, stablehlo float32)"),
    ] = None
    """What numbers are stored as; bfloat16 halves the file. onnx is float32 always."""
    stage: StageName = "final"
    """Which model of a run: as it stood after this stage."""
    base: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(optional)")] = None
    """Base model of an adapter that is merged, in place of the one that it names."""

    def run(self) -> None:
        """Export and say what it takes on disk."""
        from lpaf_jax.checkpoints import find_model
        from lpaf_jax.export import (
            export_adapter,
            export_dense,
            export_factorized,
            export_merged,
            export_onnx,
            export_stablehlo,
        )
        from lpaf_jax.report.facts import size

        if self.base is not None and self.format != "merged":
            raise SettingError(("base",), "is for --format merged alone: leave it out")
        place = self.dir if self.format == "merged" else find_model(self.dir, self.stage)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise LpafError(f"{self.out} is not empty: name a new folder for --out")
        if self.format in ("adapter", "merged") and self.dtype is not None:
            whose = "the base model's" if self.format == "merged" else "float32"
            raise SettingError(("dtype",), f"is {whose} for --format {self.format}: leave it out")
        if self.format in ("adapter", "merged") and self.stage != "final":
            raise SettingError(("stage",), f"says nothing to --format {self.format}: leave it out")
        if self.format == "merged":
            export_merged(self.dir, self.out, base=self.base)
        elif self.format == "adapter":
            export_adapter(self.dir, self.out)
        elif self.format == "onnx":
            if self.dtype == "bfloat16":
                raise SettingError(
                    ("dtype",),
                    "cannot be bfloat16 for --format onnx: leave it out",
                )
            export_onnx(place, self.out)
        elif self.format == "dense":
            export_dense(place, self.out, dtype=self.dtype)
        elif self.format == "factorized":
            export_factorized(place, self.out, dtype=self.dtype)
        else:
            export_stablehlo(place, self.out, dtype=self.dtype)
        before, after = (_bytes(folder) for folder in (place, self.out))
        print(f"{place}: {size(before)}")
        times = f" ({after / before:.2f} times as large)" if self.format != "merged" else ""
        print(f"{self.out}: {size(after)}{times}")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
