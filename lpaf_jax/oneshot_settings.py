"""Every choice of a compression without training, with its default."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

DEFAULT_LENGTH = 512

_FILE = arg(metavar="FILE")
_FILE_OR_NONE = arg(metavar="FILE", help_behavior_hint="(optional)")
_LENGTH_HINT = arg(
    metavar="INT", help_behavior_hint=f"(default: {DEFAULT_LENGTH}, or what it reads)"
)


@dataclass(frozen=True)
class OneShot:
    """Settings of `lpaf compress --one-shot`."""

    model: Positional[str]
    """A folder with a Hugging Face checkpoint of GPT-2, Llama, Mistral or Qwen, or a hub id."""
    calibration: Annotated[Path, _FILE]
    """Plain text (.txt), or a .json, .csv, .tsv, .jsonl or .parquet file with a text a row."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of the result; an unfinished run of the same settings found there is continued."""
    params: float = 0.8
    """Share of the numbers in the compressible matrices to keep, in (0, 1)."""
    weighting: Literal["activations", "fisher", "none"] = "activations"
    """What is kept close: the outputs on the calibration text, rows by Fisher, or weights (SVD)."""
    ranks: Literal["uniform", "allocated"] = "uniform"
    """The same share of every matrix, or a share for each where it keeps most."""
    samples: int = 128
    """Pieces of the calibration text that are read, at most."""
    length: Annotated[int | None, _LENGTH_HINT] = None
    """Tokens of a piece."""
    held_out: Annotated[Path | None, _FILE_OR_NONE] = None
    """Text whose perplexity is taken before and after, on its first pieces, as many at most."""
    text_column: Annotated[str, arg(metavar="NAME")] = "text"
    """Column of the text in a file of rows."""
    seed: int = 0
    """Decides which pieces of the calibration text are read."""
    quiet: bool = False
    """Print nothing but errors."""
