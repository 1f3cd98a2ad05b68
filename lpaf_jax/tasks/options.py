"""The choices of a run that are no part of its recipe: what is read, where it goes, on what."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from tyro.conf import Positional, arg

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.ranges import demand, demand_choice, whole
from lpaf_jax.data import SQUAD, TASK_NAMES, is_text
from lpaf_jax.data.glue import GLUE
from lpaf_jax.data.language import WINDOW
from lpaf_jax.data.windows import LENGTH

_LENGTH_DEFAULT = 64
TEXT_LENGTH = 512
"""Tokens of a piece of a text, where neither the model nor a person says otherwise."""

# What `lpaf compress --help` shows in place of the types, and of "(default: None)".
_OPTIONAL = "(optional)"
_INT = arg(metavar="INT", help_behavior_hint=_OPTIONAL)
_FILE = arg(metavar="FILE", help_behavior_hint=_OPTIONAL)
_LENGTH = arg(
    metavar="INT",
    help_behavior_hint=(
        f"(default: {_LENGTH_DEFAULT}; {LENGTH} for SQuAD, {WINDOW} for a language model, "
        f"{TEXT_LENGTH} without a task)"
    ),
)


def _name(help_: str) -> Any:
    return arg(metavar="NAME", help_behavior_hint=_OPTIONAL, help=help_)


# How a task is named beside its name, for every command that reads one.
TextColumn = Annotated[
    str | None,
    _name("Column of the text in a file. Default: `sentence`, or `text` for a language model."),
]
LabelColumn = Annotated[str | None, _name("Column of the label in a file. Default: `label`.")]
PairColumn = Annotated[str | None, _name("Column of the second text in a file of text pairs.")]
Copy = Annotated[
    Path | None,
    arg(
        metavar="DIR",
        help_behavior_hint=_OPTIONAL,
        help=(
            "Local copy of the data, instead of the hub. GLUE: a folder with train and "
            "validation (or dev) as .parquet, .csv or .tsv, GLUE's own archives, or a data set "
            "saved by `datasets`. SQuAD: the official .json files, or one file in their format."
        ),
    ),
]
Reuse = Annotated[
    tuple[Path, ...],
    arg(
        metavar="DIR [DIR ...]",
        help_behavior_hint=_OPTIONAL,
        help=(
            "Runs, or comparisons made with --keep all, whose finished stages are reused if "
            "everything they depend on is the same."
        ),
    ),
]


class Training(NamedTuple):
    """What all training stages of a run have in common."""

    batch: int
    accumulate: int
    dtype: str
    seed: int
    warmup: float
    weight_decay: float
    fsdp: int


_TASK = (
    f"{', '.join(f'`{name}`' for name in TASK_NAMES if name not in GLUE)}, a GLUE task, a json, "
    "csv, tsv, jsonl or parquet file, or a .txt file to train a decoder on. To compress without "
    "training, give --calibration instead."
)


@dataclass(frozen=True)
class Options:
    """What `lpaf compress` is given beside the settings of the stages of its recipe."""

    model: Positional[str]
    """`minilm`, `smollm2`, a folder with a Hugging Face checkpoint, a .gguf file, or a hub id."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of the run; an unfinished run with the same settings is resumed.
    Default on the command line: a folder in runs/ named after the settings."""
    task: Annotated[str | None, arg(metavar="TASK", help_behavior_hint=_OPTIONAL, help=_TASK)] = (
        None
    )
    recipe: Annotated[str | None, arg(metavar="NAME", help_behavior_hint=_OPTIONAL)] = None
    """Compression method: a name from `lpaf recipes`, FILE.py:NAME or FILE.yaml.
    Default: lpaf, or channels without a task."""
    preset: Literal["quick", "standard", "paper"] = "standard"
    """Defaults for all stages: a short real run, the usual schedule, or the paper's."""
    calibration: Annotated[Path | None, _FILE] = None
    """Text for compression without a task: a .txt file, a table with one text per row,
    or the training split of `imdb` or `rotten_tomatoes`."""
    held_out: Annotated[Path | None, _FILE] = None
    """Text for evaluation without a task; of `imdb` or `rotten_tomatoes`, the test split.
    Default: the end of the calibration text."""
    samples: int = 128
    """Maximum number of calibration sequences."""

    batch: int = 32
    """Examples per training step; without a task, sequences per batch."""
    accumulate: int = 1
    """Micro-batches per step, to save memory; the step is that of the whole batch."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation in training; weights, softmax and norms stay float32."""
    warmup: float = 0.1
    """Share of each stage's steps used for learning-rate warm-up; pruning starts after it."""
    weight_decay: float = 0.01
    """Decoupled weight decay, applied to matrices only."""
    length: Annotated[int | None, _LENGTH] = None
    """Maximum length in tokens; longer texts are truncated,
    or read in windows of this length (SQuAD, language models)."""
    doc_stride: int = 128
    """Overlap in tokens between two windows of a context; at most a third of --length."""
    seed: int = 0
    """Random seed for the new head, the batches, sampling and dropout."""
    limit: Annotated[int | None, _INT] = None
    """Maximum number of training examples, or of windows of a text."""

    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    regression: bool = False
    """Treat the labels of a file as numbers to predict, not as classes."""
    language_model: bool = False
    """Train on next-token prediction: a table with one unlabelled text per row.
    A .txt file is always read in this way."""
    data: Copy = None

    reuse: Reuse = ()
    fsdp: int = 1
    """Devices that share one copy of the training state; batches are split over all devices."""
    distributed: bool = False
    """Run as one of several processes, on hosts that share --out."""
    nf4: bool = False
    """Also evaluate the dense and the final model with their compressible matrices in NF4
    (4 bits per weight)."""
    keep: Literal["all", "final"] = "all"
    """Keep the model after every stage, or only the final one."""
    force: bool = False
    """Start over if --out holds another run; that run is deleted."""
    quiet: bool = False
    """Print only errors."""

    @property
    def tokens(self) -> int:
        """`length`, or the usual one where it is not chosen: windows are longer than texts."""
        usual = LENGTH if self.task in SQUAD else _LENGTH_DEFAULT
        usual = WINDOW if self.reads_text else usual
        return usual if self.length is None else self.length

    @property
    def reads_text(self) -> bool:
        """Whether a language model is made: texts without labels."""
        return self.language_model or (self.task is not None and is_text(self.task))

    @property
    def trains_head(self) -> bool:
        """Whether the head of the task is trained, or the model brings its own."""
        return True

    @property
    def training(self) -> Training:
        """What every training stage is told."""
        return Training(**{name: getattr(self, name) for name in Training._fields})


DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(Options)
    if field.default is not dataclasses.MISSING
}
# Options that do not change what is computed, so a run may be continued under others. A preset
# and a recipe are nothing but the values they stand for.
NOT_COMPARED = ("out", "preset", "reuse", "fsdp", "distributed", "keep", "force", "quiet")
# By what an option is known where there is no task, and where there is one.
_OF_TASKS = ("label_column", "pair_column", "regression", "language_model", "data", "limit")
_OF_TEXTS = ("held_out",)


def check_options(options: Options) -> None:
    """Refuse what cannot work.

    Raises:
        LpafError: names the option and its range.
    """
    for field in dataclasses.fields(Options):
        if get_origin(field.type) is Literal:
            demand_choice(options, field.name, get_args(field.type))
    for name in ("warmup",):
        demand(options, name, lambda x: 0 <= x < 1, "in [0, 1)")
    demand(options, "weight_decay", lambda x: 0 <= x < float("inf"), "finite and at least 0")
    for name in ("batch", "accumulate", "fsdp", "doc_stride", "samples"):
        demand(options, name, whole(1), "a whole number, at least 1")
    if options.limit is not None:
        demand(options, "limit", whole(1), "a whole number, at least 1")
    if options.length is not None:
        demand(options, "length", whole(4), "a whole number, at least 4")
    # JAX keeps 32 bits of a seed.
    demand(options, "seed", whole(0, 2**31 - 1), "a whole number from 0 to 2147483647")
    if options.batch % options.accumulate:
        raise SettingError(("accumulate",), f"must divide --batch, which is {options.batch}")
    _check_source(options)


def demand_source(task: object, calibration: object) -> None:
    """Refuse a run that has neither a task nor a calibration text.

    Raises:
        LpafError: names both.
    """
    if task is None and calibration is None:
        raise LpafError(
            "a task or a text is missing: give --task, or --calibration to compress without "
            "training"
        )


def _check_source(options: Options) -> None:
    """One of a task and a calibration text, and nothing that belongs to the other."""
    demand_source(options.task, options.calibration)
    both = options.task is not None and options.calibration is not None
    if both:
        raise SettingError(("task", "calibration"), "exclude each other: a task has its own texts")
    foreign = _OF_TEXTS if options.task is not None else _OF_TASKS
    for name in foreign:
        if getattr(options, name) != DEFAULTS[name]:
            needs = "--calibration" if options.task is not None else "--task"
            raise SettingError((name,), f"works only with {needs}: leave it out")
