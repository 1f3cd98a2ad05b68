"""Every choice of a run, with its default; presets; checks made before any work starts."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from lpaf_jax.errors import LpafError

Step = Literal["prune", "weighting", "mixing"]


@dataclass(frozen=True)
class Settings:
    """Settings of `lpaf compress`; the Python call `lpaf_jax.compress` takes the same names."""

    model: Positional[str]
    """`minilm`, a folder with a Hugging Face BERT checkpoint, or a hub id."""
    task: str
    """`rotten_tomatoes`, `imdb`, a GLUE task, or the path of a .csv or .tsv file."""
    out: Path
    """Folder of the run; an unfinished run of the same settings found there is continued."""
    preset: Literal["quick", "standard", "paper"] = "standard"
    """Set of defaults for all that follows: a short real run, the best found, the paper's shape."""

    params: float = 0.5
    """Share of the numbers in the compressible matrices to keep, in (0, 1]."""
    rank: int | None = None
    """Rank of every factorization; in place of `params`."""
    solver: Literal["row", "elementwise", "none"] = "row"
    """Weighted factorization: one importance a row (closed form), every entry its own, or none."""
    importance: Literal["score", "mask", "magnitude", "none"] = "score"
    """What weighs the factorization: first-order score, pruning mask, magnitude, or nothing."""
    floor: float = 0.1
    """Importance every entry has at least, as a share of the mean."""
    criterion: Literal["first-order", "magnitude"] = "first-order"
    """What pruning keeps: the largest first-order scores, or the largest weights."""
    without: tuple[Step, ...] = ()
    """LPAF steps to leave out: prune (1), weighting (2, plain SVD), mixing (3, plain tuning)."""

    kept: float = 0.5
    """Share of weights that pruning keeps (v)."""
    scope: Literal["global", "matrix"] = "global"
    """Keep the top share over all matrices together, or of each."""
    mask_every: int = 10
    """Steps between two updates of the pruning masks."""
    score_decay: float | None = None
    """Factor on the accumulated score at each step; none sums without forgetting."""

    finetune_epochs: float = 3.0
    """Epochs of fine-tuning; 0 takes MODEL as it is, already fine-tuned."""
    prune_epochs: float = 4.0
    """Epochs of pruning."""
    tune_epochs: float = 4.0
    """Epochs of fine-tuning after the factorization."""
    finetune_lr: float = 5e-5
    """Peak learning rate of fine-tuning."""
    prune_lr: float = 5e-5
    """Peak learning rate of pruning."""
    tune_lr: float = 5e-5
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

    batch: int = 32
    """Examples a step."""
    length: int = 64
    """Longest text in tokens; what is longer is cut."""
    seed: int = 0
    """Of the head, the batches, the draws and dropout."""
    limit: int | None = None
    """Use at most this many training examples."""

    text_column: str | None = None
    """Column of the text, for a csv or tsv file."""
    label_column: str | None = None
    """Column of the label, for a csv or tsv file."""
    pair_column: str | None = None
    """Column of the second text, for a csv or tsv file about pairs."""
    data: Path | None = None
    """Local copy of a GLUE task."""

    reuse: Annotated[Path | None, arg(help_behavior_hint="(optional)")] = None
    """Folder of another run: stages it has finished under the same settings are taken over."""
    keep: Literal["all", "final"] = "all"
    """Keep the model after every stage, or the final one only."""
    force: bool = field(default=False)
    """Start anew where OUT holds another run, which is deleted."""
    quiet: bool = False
    """Print nothing but errors."""

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
        left_out = tuple(sorted(set(self.without)))
        return names.get(left_out, "lpaf-without-" + "-".join(left_out))


# Settings that do not change what is computed, so a run may be continued under others.
NOT_COMPARED = ("out", "reuse", "keep", "force", "quiet")

_QUICK = {
    "finetune_epochs": 2.0,
    "prune_epochs": 1.5,
    "tune_epochs": 1.0,

}
_PAPER = {
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
    model: str, *, task: str, out: Path | str, preset: str = "standard", **chosen: Any
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
        chosen["without"] = tuple(chosen["without"])
    for name in ("data", "reuse"):
        if chosen.get(name) is not None:
            chosen[name] = Path(chosen[name])
    given = PRESETS[preset] | chosen
    settings = Settings(model=model, task=task, out=Path(out), preset=preset, **given)  # type: ignore[arg-type]
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Refuse what cannot work.

    Raises:
        LpafError: names the setting and its range.
    """
    _choices(settings)
    for name in ("params", "kept"):
        _demand(settings, name, lambda x: 0 < x <= 1, "in (0, 1]")
    for name in ("finetune_lr", "prune_lr", "tune_lr"):
        _demand(settings, name, lambda x: 0 < x < 1, "in (0, 1)")
    for name in ("warmup", "cooldown", "p_init", "p_end"):
        _demand(settings, name, lambda x: 0 <= x <= 1, "in [0, 1]")
    for name in ("floor", "consistency", "weight_decay", "finetune_epochs"):
        _demand(settings, name, lambda x: 0 <= x < math.inf, "at least 0")
    for name in ("prune_epochs", "tune_epochs"):
        _demand(settings, name, lambda x: 0 < x < math.inf, "more than 0")
    for name in ("batch", "mask_every"):
        _demand(settings, name, lambda x: x >= 1, "at least 1")
    for name in ("rank", "limit"):
        _demand(settings, name, lambda x: x is None or x >= 1, "at least 1")
    _demand(settings, "length", lambda x: x >= 4, "at least 4")
    _demand(settings, "seed", lambda x: x >= 0, "at least 0")
    _demand(settings, "score_decay", lambda x: x is None or 0 < x <= 1, "in (0, 1]")
    if settings.warmup + settings.cooldown >= 1:
        raise LpafError("warmup and cooldown together must be less than 1: no step is left between")


def _choices(settings: Settings) -> None:
    allowed = {
        "solver": ("row", "elementwise", "none"),
        "importance": ("score", "mask", "magnitude", "none"),
        "criterion": ("first-order", "magnitude"),
        "scope": ("global", "matrix"),
        "keep": ("all", "final"),
    }
    for name, values in allowed.items():
        if getattr(settings, name) not in values:
            raise LpafError(
                f"{name} {getattr(settings, name)!r} is unknown: choose one of {', '.join(values)}"
            )
    for step in settings.without:
        if step not in ("prune", "weighting", "mixing"):
            raise LpafError(f"without {step!r} is unknown: choose from prune, weighting, mixing")


def _demand(settings: Settings, name: str, good: Any, range_: str) -> None:
    value = getattr(settings, name)
    try:
        fine = good(value)
    except TypeError:
        fine = False
    if not fine:
        raise LpafError(f"{name} is {value!r}, but must be {range_}")


def as_json(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values."""
    values = dataclasses.asdict(settings)
    return {
        name: str(value) if isinstance(value, Path) else list(value) if name == "without" else value
        for name, value in values.items()
    }
