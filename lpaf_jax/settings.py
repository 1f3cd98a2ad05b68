"""Every choice of a run, with its default; presets; checks made before any work starts."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from tyro.conf import Positional, arg

from lpaf_jax.data import SQUAD, is_text
from lpaf_jax.data.language import WINDOW
from lpaf_jax.data.windows import LENGTH
from lpaf_jax.errors import LpafError, SettingError

Step = Literal["prune", "weighting", "mixing"]

_PARAMS_DEFAULT = 0.5
_LENGTH_DEFAULT = 64

# What `lpaf compress --help` shows in place of the types, and of "(default: None)".
_OPTIONAL = "(optional)"
_DIR = arg(metavar="DIR", help_behavior_hint=_OPTIONAL)
_INT = arg(metavar="INT", help_behavior_hint=_OPTIONAL)
_PARAMS = arg(metavar="FLOAT", help_behavior_hint=f"(default: {_PARAMS_DEFAULT})")
_LENGTH = arg(
    metavar="INT",
    help_behavior_hint=(
        f"(default: {_LENGTH_DEFAULT}, {LENGTH} for SQuAD, {WINDOW} for a language model)"
    ),
)


def _name(help_: str) -> Any:
    return arg(metavar="NAME", help_behavior_hint=_OPTIONAL, help=help_)


# How a task is named beside its name, for every command that reads one.
TextColumn = Annotated[
    str | None,
    _name(
        "Column of the text in a file, where it is not `sentence`, or `text` for a language model."
    ),
]
LabelColumn = Annotated[
    str | None, _name("Column of the label in a file, where it is not `label`.")
]
PairColumn = Annotated[str | None, _name("Column of the second text in a file about pairs.")]
Copy = Annotated[
    Path | None,
    arg(
        metavar="DIR",
        help_behavior_hint=_OPTIONAL,
        help=(
            "Folder of a GLUE task, in place of the hub: train and validation (or dev) as "
            ".parquet, .csv or .tsv files, as `datasets` or GLUE's own archives have them, or what "
            "`datasets` saved. Of SQuAD, its official .json files, or one file in their format."
        ),
    ),
]


@dataclass(frozen=True)
class Settings:
    """Settings of `lpaf compress`; `lpaf_jax.pipeline.compress` takes the same names."""

    model: Positional[str]
    """`minilm`, a folder with a Hugging Face checkpoint, or a hub id."""
    task: Annotated[str, arg(metavar="TASK")]
    """`rotten_tomatoes`, `imdb`, a GLUE task, `squad`, `squad_v2`, or a json, csv, tsv, jsonl or
    parquet file; or a .txt file, whose next tokens a decoder learns."""
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of the run; an unfinished run of the same settings found there is continued."""
    preset: Literal["quick", "standard", "paper"] = "standard"
    """Defaults of all that follows: a short real run, the best found, or the paper's shape."""

    params: Annotated[float | None, _PARAMS] = None
    """Share of the numbers in the compressible matrices to keep, in (0, 1]."""
    rank: Annotated[int | None, _INT] = None
    """Rank of every factorization, instead of --params."""
    solver: Literal["row", "elementwise", "none"] = "row"
    """Factorization: one importance a row (closed form), every entry its own, or plain SVD."""
    importance: Literal["score", "mask", "magnitude", "none"] = "score"
    """What weighs the factorization: first-order score, pruning mask, magnitude, or nothing."""
    floor: float = 0.1
    """Importance every entry has at least, as a share of the mean."""
    criterion: Literal["first-order", "sensitivity", "magnitude"] = "sensitivity"
    """What pruning keeps: largest signed first-order score (paper's), unsigned one, or weight."""
    without: Annotated[
        tuple[Step, ...], arg(metavar="STEP [STEP ...]", help_behavior_hint="(default: none)")
    ] = ()
    """LPAF steps to leave out: prune (1), weighting (2: plain SVD), mixing (3: plain tuning)."""

    kept: float = 0.3
    """Share of weights that pruning keeps (v)."""
    scope: Literal["global", "matrix"] = "global"
    """Keep the top share over all matrices together, or of each."""
    mask_every: int = 10
    """Steps between two updates of the pruning masks."""
    score_decay: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint=_OPTIONAL)] = None
    """Factor on the accumulated score at each step; without one it is summed and never forgets."""

    finetune_epochs: float = 2.0
    """Epochs of fine-tuning; 0 takes MODEL as it is, already fine-tuned."""
    prune_epochs: float = 1.0
    """Epochs of pruning."""
    tune_epochs: float = 1.0
    """Epochs of fine-tuning after the factorization."""
    finetune_lr: float = 8e-5
    """Peak learning rate of fine-tuning."""
    prune_lr: float = 5e-5
    """Peak learning rate of pruning."""
    tune_lr: float = 2e-4
    """Peak learning rate after the factorization."""
    warmup: float = 0.1
    """Share of each stage's steps in which the learning rate rises; pruning starts after it."""
    cooldown: float = 0.3
    """Share of the pruning steps left at the final sparsity."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    p_init: float = 0.5
    """Chance of the dense branch at the start of mixed-rank fine-tuning."""
    p_end: float = 0.7
    """Share of the steps after which that chance is 0."""
    consistency: float = 1.0
    """Weight of the consistency loss between the two passes."""
    distil: float = 0.0
    """Weight of the fine-tuned model's answers in the loss while the factors are tuned."""
    distil_hidden: float = 0.0
    """Weight of its hidden states there."""
    temperature: float = 1.0
    """Temperature at which answers are compared."""

    batch: int = 32
    """Examples a step."""
    accumulate: int = 1
    """Parts of a batch that pass one after another: the memory of one, the step of all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What training computes in; weights, softmax and norms stay float32."""
    length: Annotated[int | None, _LENGTH] = None
    """Longest text in tokens; what is longer is cut, or read in windows of this length (SQuAD,
    language models)."""
    doc_stride: int = 128
    """Tokens that two windows of a context share; a third of --length at most."""
    seed: int = 0
    """Decides the new head, the batches, the draws and dropout."""
    limit: Annotated[int | None, _INT] = None
    """Use at most this many training examples, or windows of a text."""

    text_column: TextColumn = None
    label_column: LabelColumn = None
    pair_column: PairColumn = None
    regression: bool = False
    """The labels of a file are numbers to be predicted, not classes."""
    language_model: bool = False
    """A text a row, without labels: learn the next token, as of a .txt file. Never guessed: a file
    of labelled texts has a column of text, too."""
    data: Copy = None

    reuse: Annotated[Path | None, _DIR] = None
    """Run to take fine-tuning and pruning over from, as far as their settings are the same."""
    fsdp: int = 1
    """Devices that share one copy of the training state; batches are cut over all devices."""
    distributed: bool = False
    """Be one of several processes that make the run together, on hosts that share --out."""
    keep: Literal["all", "final"] = "all"
    """Keep the model after every stage, or the final one only."""
    force: bool = False
    """Start anew where --out holds another run, which is deleted."""
    quiet: bool = False
    """Print nothing but errors."""

    @property
    def share(self) -> float | None:
        """`params`, or 0.5 where neither it nor the rank is chosen; None where the rank is."""
        return _PARAMS_DEFAULT if self.params is None and self.rank is None else self.params

    @property
    def tokens(self) -> int:
        """`length`, or the usual one where it is not chosen: windows are longer than texts."""
        usual = LENGTH if self.task in SQUAD else _LENGTH_DEFAULT
        usual = WINDOW if self.reads_text else usual
        return usual if self.length is None else self.length

    @property
    def reads_text(self) -> bool:
        """Whether a language model is made: texts without labels."""
        return self.language_model or is_text(self.task)

    @property
    def recipe(self) -> str:
        """Name of the method that these settings make."""
        names = {
            (): "lpaf",
            ("prune",): "lpaf-without-step-1",
            ("weighting",): "lpaf-without-step-2",
            ("mixing",): "lpaf-without-step-3",
            ("mixing", "prune", "weighting"): "svd-ft",
        }
        left_out = set(self.without)
        if self.solver == "none" or self.importance == "none":
            left_out.add("weighting")
        steps = tuple(sorted(left_out))
        name = names.get(steps, "lpaf-without-" + "-".join(steps))
        by_magnitude = self.criterion == "magnitude" and "prune" not in steps
        return f"{name}-magnitude" if by_magnitude else name


# Settings that do not change what is computed, so a run may be continued under others. A preset
# is nothing but the values it stands for.
NOT_COMPARED = ("out", "preset", "reuse", "fsdp", "distributed", "keep", "force", "quiet")

_QUICK = {
    "kept": 0.5,
    "finetune_epochs": 1.25,
    "prune_epochs": 0.5,
    "tune_epochs": 0.6,
}
_PAPER = {
    "criterion": "first-order",
    "kept": 0.1,
    "finetune_epochs": 3.0,
    "prune_epochs": 10.0,
    "tune_epochs": 10.0,
    "finetune_lr": 3e-5,
    "prune_lr": 3e-5,
    "tune_lr": 3e-5,
}
PRESETS: dict[str, dict[str, Any]] = {"quick": _QUICK, "standard": {}, "paper": _PAPER}


def make_settings(
    model: Path | str, *, task: Path | str, out: Path | str, preset: str = "standard", **chosen: Any
) -> Settings:
    """Settings from a preset and what is chosen beside it.

    Raises:
        LpafError: an unknown preset or setting, or a value outside its range.
    """
    if preset not in PRESETS:
        raise LpafError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    names = {f.name for f in dataclasses.fields(Settings)}
    unknown = sorted(set(chosen) - names)
    if unknown:
        raise LpafError(f"unknown setting {unknown[0]!r}: choose from {', '.join(sorted(names))}")
    if "without" in chosen:
        steps = chosen["without"]
        chosen["without"] = (steps,) if isinstance(steps, str) else tuple(steps)
    for name in ("data", "reuse"):
        if chosen.get(name) is not None:
            chosen[name] = Path(chosen[name])
    given = PRESETS[preset] | chosen
    settings = Settings(
        model=str(model),
        task=str(task),
        out=Path(out),
        preset=preset,  # type: ignore[arg-type]
        **given,
    )
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Refuse what cannot work.

    Raises:
        LpafError: names the setting and its range.
    """
    _choices(settings)
    _demand(settings, "kept", lambda x: 0 < x <= 1, "in (0, 1]")
    for name in ("params", "score_decay"):
        _demand(settings, name, lambda x: x is None or 0 < x <= 1, "in (0, 1]")
    for name in ("finetune_lr", "prune_lr", "tune_lr"):
        _demand(settings, name, lambda x: 0 < x < 1, "in (0, 1)")
    for name in ("warmup", "cooldown", "p_init", "p_end"):
        _demand(settings, name, lambda x: 0 <= x <= 1, "in [0, 1]")
    _demand(settings, "temperature", lambda x: 0 < x < math.inf, "finite and more than 0")
    for name in (
        *("floor", "consistency", "distil", "distil_hidden", "weight_decay", "finetune_epochs"),
    ):
        _demand(settings, name, lambda x: 0 <= x < math.inf, "finite and at least 0")
    for name in ("prune_epochs", "tune_epochs"):
        _demand(settings, name, lambda x: 0 < x < math.inf, "finite and more than 0")
    for name in ("batch", "mask_every", "accumulate", "fsdp", "doc_stride"):
        _demand(settings, name, _whole(1), "a whole number, at least 1")
    for name in ("rank", "limit"):
        if getattr(settings, name) is not None:
            _demand(settings, name, _whole(1), "a whole number, at least 1")
    if settings.length is not None:
        _demand(settings, "length", _whole(4), "a whole number, at least 4")
    # JAX keeps 32 bits of a seed.
    _demand(settings, "seed", _whole(0, 2**31 - 1), "a whole number from 0 to 2147483647")
    if settings.params is not None and settings.rank is not None:
        raise SettingError(("params", "rank"), "both choose the rank: leave one of them out")
    if settings.batch % settings.accumulate:
        raise SettingError(("accumulate",), f"must divide --batch, which is {settings.batch}")
    if settings.warmup + settings.cooldown >= 1:
        raise SettingError(
            ("warmup", "cooldown"), "together must be less than 1: no step is left between"
        )


def _choices(settings: Settings) -> None:
    for field in dataclasses.fields(Settings):
        values = get_args(field.type) if get_origin(field.type) is Literal else ()
        if values and getattr(settings, field.name) not in values:
            raise SettingError(
                (field.name,),
                f"{getattr(settings, field.name)!r} is unknown: choose one of {', '.join(values)}",
            )
    steps = get_args(Step)
    for step in settings.without:
        if step not in steps:
            raise SettingError(("without",), f"{step!r} is unknown: choose from {', '.join(steps)}")


def _whole(least: int, most: int | None = None) -> Callable[[Any], bool]:
    def good(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and least <= value and (most is None or value <= most)

    return good


def _demand(settings: Settings, name: str, good: Callable[[Any], bool], range_: str) -> None:
    value = getattr(settings, name)
    try:
        fine = good(value)
    except TypeError:
        fine = False
    if not fine:
        raise SettingError((name,), f"is {value!r}, but must be {range_}")


def as_json(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values; of the steps left out, neither order nor repeats matter.

    `params` or `length` left out is the value it then has, which is the same run.
    """
    values = dataclasses.asdict(settings) | {
        "params": settings.share,
        "length": settings.tokens,
        "without": sorted(set(settings.without)),
    }
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
