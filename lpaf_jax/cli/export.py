"""`lpaf export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName
from lpaf_jax.core.errors import LpafError, SettingError


@dataclass(frozen=True)
class Export:
    """Export a finished model for other tools; prints the size before and after.

    Factors stay factors, except in a dense checkpoint.
    """

    dir: Positional[Path]
    """Folder of a run or of a model; for `--format merged`, of an adapter."""
    format: Literal["dense", "factorized", "stablehlo", "onnx", "adapter", "merged"]
    """dense: an ordinary Hugging Face checkpoint, with the factors multiplied together;
    factorized: the same folder in another `--dtype`;
    stablehlo: a `jax.export` program for CPU, GPU and TPU that needs only jax;
    onnx: a graph from PyTorch's exporter, which needs torch, onnx and onnxscript;
    adapter: the adapter trained with `--lora`, as a PEFT folder for the model before it;
    merged: the PEFT adapter in DIR, added to its base model."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Output folder, new or empty."""
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        arg(help_behavior_hint="(default: as stored; float32 for stablehlo)"),
    ] = None
    """Dtype of the stored weights; bfloat16 halves the file. onnx is always float32."""
    stage: StageName = "final"
    """Stage whose model is used, if DIR is a run."""
    base: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(optional)")] = None
    """Base model for `--format merged`, instead of the one that the adapter names."""

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
            raise SettingError(("base",), "works only with --format merged: leave it out")
        place = self.dir if self.format == "merged" else find_model(self.dir, self.stage)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise LpafError(f"{self.out} is not empty: name a new folder for --out")
        if self.format in ("adapter", "merged") and self.dtype is not None:
            whose = "the base model's" if self.format == "merged" else "float32"
            raise SettingError(
                ("dtype",), f"is always {whose} with --format {self.format}: leave it out"
            )
        if self.format in ("adapter", "merged") and self.stage != "final":
            raise SettingError(
                ("stage",), f"has no effect with --format {self.format}: leave it out"
            )
        if self.format == "merged":
            export_merged(self.dir, self.out, base=self.base)
        elif self.format == "adapter":
            export_adapter(self.dir, self.out)
        elif self.format == "onnx":
            if self.dtype == "bfloat16":
                raise SettingError(
                    ("dtype",),
                    "cannot be bfloat16 with --format onnx: leave it out",
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
