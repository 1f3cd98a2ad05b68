"""What metrics.json says, in units a person reads. Shared by the page, the table and the card.

Every figure may be missing (a run that stopped early, a step left out): readers get None and
the renderings show a dash, so that an old or partial run can still be looked at.
"""

import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

Metrics = Mapping[str, Any]

STAGES = {
    "dense": "Dense",
    "pruned": "Pruned",
    "factorized": "Factorized",
    "final": "Final",
}
# Pruning writes zeros into matrices of unchanged shape; the last training step changes values
# only. So these stages hold exactly as many numbers as the ones they are paired with.
SAME_SHAPES = {"dense": "dense", "pruned": "dense", "factorized": "final", "final": "final"}

# What took time or logged steps: a stage by its own name, or by what was done in it.
PHASES = {
    "dense": "Fine-tuning",
    "finetune": "Fine-tuning",
    "pruned": "Pruning",
    "prune": "Pruning",
    "factorized": "Factorizing",
    "final": "Tuning the factors",
    "tune": "Tuning the factors",
    "evaluate": "Evaluating",
}

_MODELS = {"minilm": "MiniLM"}
_TASKS = {
    "rotten_tomatoes": "Rotten Tomatoes",
    "imdb": "IMDb",
    "sst2": "SST-2",
    "cola": "CoLA",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}


def number(metrics: Metrics, *keys: str) -> float | None:
    """The finite number at `metrics[k0][k1]...`, or None where any of it is missing."""
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def count(value: float | None) -> str:
    """A whole number, thousands set apart."""
    return "–" if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in decimal units, as file managers and model hubs show them."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float | None) -> str:
    """Milliseconds, to three figures or so."""
    if value is None:
        return "–"
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def setting(metrics: Metrics, name: str) -> Any:
    """One setting of the run, None where it was not recorded."""
    settings = metrics.get("settings")
    return settings.get(name) if isinstance(settings, Mapping) else None


def model_name(metrics: Metrics) -> str:
    """The model as a heading shows it."""
    return _name(metrics.get("model"), _MODELS, "model")


def task_name(metrics: Metrics) -> str:
    """The task as a heading shows it."""
    return _name(metrics.get("task"), _TASKS, "task")


def _name(value: Any, known: Mapping[str, str], missing: str) -> str:
    """A name for a heading: a file or folder is called by its last part, whitespace is folded."""
    text = " ".join(str(value or "").split())
    if text in known:
        return known[text]
    if text.startswith(("/", ".", "~")) or re.fullmatch(r".+\.(csv|tsv)", text):
        text = PurePath(text).name
    return text or f"unnamed {missing}"


class Timing(NamedTuple):
    """Milliseconds of one forward pass."""

    median: float
    low: float | None
    high: float | None


class Stage(NamedTuple):
    """One row of the headline table; sizes as shares of the dense model."""

    key: str
    label: str
    accuracy: float | None
    low: float | None
    high: float | None
    n: float | None
    encoder: float | None
    total: float | None
    bytes: float | None
    timings: dict[str, Timing]

    def median(self, batch: str) -> float | None:
        """Median milliseconds at one batch size."""
        found = self.timings.get(batch)
        return found.median if found else None


def timing(metrics: Metrics, stage: str, batch: str) -> Timing | None:
    """Time of a pass of `batch` texts through the model of a stage."""
    at = ("latency_ms", stage, batch)
    median = number(metrics, *at, "median")
    if median is None:
        return None
    return Timing(median, number(metrics, *at, "min"), number(metrics, *at, "max"))


def batches(metrics: Metrics) -> list[str]:
    """Batch sizes timed for any stage, smallest first."""
    latency = metrics.get("latency_ms") or {}
    found = {b for v in latency.values() if isinstance(v, Mapping) for b in v if b.isdigit()}
    return sorted(found, key=int)


def stages(metrics: Metrics) -> list[Stage]:
    """The stages this run has figures for, in the order they happened."""
    rows = []
    for key, label in STAGES.items():
        entry = (metrics.get("stages") or {}).get(key)
        if not isinstance(entry, Mapping):
            continue
        small = SAME_SHAPES[key] == "final"
        interval = entry.get("interval95") or [None, None]
        rows.append(
            Stage(
                key=key,
                label=label,
                accuracy=number(entry, "accuracy"),
                low=number({"v": interval[0]}, "v"),
                high=number({"v": interval[1]}, "v"),
                n=number(entry, "n"),
                encoder=number(metrics, "encoder_params_ratio") if small else 1.0,
                total=number(metrics, "total_params_ratio") if small else 1.0,
                bytes=number(metrics, "bytes_on_disk", key),
                timings={b: t for b in batches(metrics) if (t := timing(metrics, key, b))},
            )
        )
    return rows


def stage(metrics: Metrics, key: str) -> Stage | None:
    """The row of one stage, or None if the run has no figures for it."""
    return next((row for row in stages(metrics) if row.key == key), None)


def retained(metrics: Metrics) -> float | None:
    """Final accuracy as a share of the dense model's."""
    stored = number(metrics, "retained")
    if stored is not None:
        return stored
    dense, final = (number(metrics, "stages", key, "accuracy") for key in ("dense", "final"))
    return final / dense if dense and final is not None else None


def majority(metrics: Metrics) -> float | None:
    """Accuracy of always answering the most common class of the test set."""
    for entry in (metrics.get("stages") or {}).values():
        counts = [number(c, "n") for c in (entry.get("per_class") or {}).values()]
        known = [c for c in counts if c is not None]
        if known and sum(known) > 0:
            return max(known) / sum(known)
    return None
