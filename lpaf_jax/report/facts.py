"""What metrics.json says, in units a person reads. Shared by the page, the table and the card.

It is written when a run is finished, so nearly everything is in it. Each stage says of itself, in
`described`, what it is called and what it did. Files and passes are measured for the first and the
last model only, and passes of no model that nothing was trained for.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, NamedTuple

from lpaf_jax.data.movie_reviews import SOURCES
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.report.measures import measures

Metrics = Mapping[str, Any]

# The parts of `data`: numbers of examples, and a share of the training texts.
DATA = {
    "train": "training examples",
    "validation": "validation examples",
    "test": "test examples",
    "share_cut": "share of the training texts that reach the maximum length and may be truncated",
    "windows": "windows made from the contexts of the training questions",
    "window": "tokens per window; one example is one window",
    "left_out": "tokens left out after the last full window of each split",
    "calibration_tokens": "tokens of the calibration text",
    "judged_tokens": "tokens of the evaluation text",
}

_MODELS = {"minilm": "MiniLM", "smollm2": "SmolLM2-135M-Instruct"}
_KINDS = {
    "classification": "text classifier",
    "regression": "text regression model",
    "span": "extractive question answering model",
    "language": "language model",
}
_TASKS = {
    "rotten_tomatoes": "Rotten Tomatoes",
    "imdb": "IMDb",
    "sst2": "SST-2",
    "cola": "CoLA",
    "mrpc": "MRPC",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "mnli_mismatched": "MNLI, mismatched",
    "stsb": "STS-B",
    "squad": "SQuAD v1.1",
    "squad_v2": "SQuAD v2.0",
}


def label(metrics: Metrics, stage: str) -> str:
    """What the model after a stage is called; the dense one stands before all stages."""
    if stage == "final" and len(metrics["described"]) > 1:
        return "Final"
    entry = metrics["described"].get(stage)
    return str(entry["label"]) if entry else stage.capitalize()


def phase(metrics: Metrics, name: str) -> str:
    """What was done in a stage, or in the training that logs under a name."""
    for stage, entry in metrics["described"].items():
        if name in (stage, entry["logs"]):
            return str(entry["phase"])
    return "Evaluating" if name == "evaluate" else name.capitalize()


def logged(metrics: Metrics) -> dict[str, str]:
    """The stages that trained, by the name that they log under."""
    return {entry["logs"]: stage for stage, entry in metrics["described"].items() if entry["logs"]}


def untuned(metrics: Metrics) -> str:
    """The first stage whose model is smaller: what tuning sets out from."""
    return next(stage for stage, entry in metrics["described"].items() if entry["shrinks"])


def what_was_done(metrics: Metrics) -> str:
    """To a model that is not trained; where channels alone went, it is an ordinary one still."""
    if metrics.get("ordinary"):
        return "pruned"
    return str(metrics["described"][untuned(metrics)]["label"]).lower()


def is_trained(metrics: Metrics) -> bool:
    """Whether the run had a task, and not a text alone."""
    return bool(metrics.get("task"))


def percent(value: float, digits: int = 1) -> str:
    """A share as percent."""
    return f"{100 * value:.{digits}f} %"


def figure(value: float | None) -> str:
    """A number to two digits; JSON has null for one that is not finite."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.2f}"


def size(value: float | None) -> str:
    """Bytes in decimal units, as file managers and model hubs show them; a dash for None."""
    if value is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float) -> str:
    """Milliseconds, to three figures or so."""
    return f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def moment(written: str) -> str:
    """A time of ISO 8601 to the minute, in UTC; as it is written where it is no such time."""
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        return written
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if time.tzinfo else written


def model_name(metrics: Metrics) -> str:
    """The model as a heading shows it: a folder is called by its last part."""
    name = _one_line(metrics["model"])
    if name.startswith(("/", ".", "~")):
        name = PurePath(name).name or name
    return _MODELS.get(name, name)


def task_name(metrics: Metrics) -> str:
    """The task as a heading shows it; the calibration text where there is none."""
    name = _one_line(metrics["task"] if is_trained(metrics) else _file_name(metrics, "calibration"))
    return _TASKS.get(name, name)


def run_name(metrics: Metrics) -> str:
    """The model and what was done it by, as a heading."""
    by = "on" if is_trained(metrics) else "calibrated on"
    return f"{model_name(metrics)} {by} {task_name(metrics)}"


def is_flattered(metrics: Metrics) -> bool:
    """Whether the model was judged by the text that it was made by."""
    return metrics.get("judged_by") == "calibration text"


def judged_by(metrics: Metrics) -> str:
    """The text that the models of a run without a task were judged by."""
    held_out = metrics["settings"].get("held_out")
    if held_out in SOURCES:  # which has splits; the calibration text may be another one of it
        return f"the test split of {held_out}"
    name = "held_out" if held_out else "calibration"
    return f"the {metrics['judged_by']} {_one_line(_file_name(metrics, name))}"


def _file_name(metrics: Metrics, setting: str) -> str:
    return PurePath(metrics["settings"][setting]).name


def family_name(metrics: Metrics) -> str:
    """The family of the model; all were BERT before there were others."""
    name = str(metrics.get("family", "bert"))
    return FAMILIES[name].name if name in FAMILIES else name


def kind_of(metrics: Metrics) -> str:
    """The kind of the task; all were classifications before there were others."""
    return str(metrics.get("kind", "classification"))


def kind_name(metrics: Metrics) -> str:
    """What the model is, within a sentence."""
    return _KINDS[kind_of(metrics)]


def _one_line(name: str) -> str:
    return re.sub(r"\s+", " ", name).strip()


class Timing(NamedTuple):
    """Milliseconds of one forward pass."""

    median: float
    min: float
    max: float


class Row(NamedTuple):
    """One row of the headline table; numbers stored as shares of the dense model's.

    Attributes:
        score: by the task's primary metric.
        scores: by all its official metrics, as they are shown, the primary one first.
        low, high: 95 % interval of the accuracy; None where there is no accuracy.
    """

    label: str
    score: float
    scores: list[str]
    low: float | None
    high: float | None
    encoder: float
    total: float
    bytes: float | None
    timings: dict[str, Timing]

    @property
    def interval(self) -> str:
        """The 95 % interval of the accuracy; a dash where there is none."""
        if self.low is None or self.high is None:
            return "–"
        return f"{100 * self.low:.1f} to {100 * self.high:.1f} %"

    def median(self, batch: str) -> str:
        """Median time at one batch size; a dash where this model was not timed."""
        return milliseconds(self.timings[batch].median) if self.timings else "–"


def number(value: float | None) -> float:
    """JSON has null for a number that is not finite."""
    return math.inf if value is None else value


def units(metrics: Metrics) -> str:
    """What the examples of the task are called."""
    if kind_of(metrics) != "language" or "window" not in metrics["data"]:
        return "examples"
    return f"windows of {metrics['data']['window']} tokens"


def judged_on(metrics: Metrics) -> str:
    """How much the figures are from: `1,066 test examples`; tokens of a text without a task."""
    data = metrics["data"]
    if "judged_tokens" in data:
        return f"{data['judged_tokens']:,} tokens of the {metrics['judged_by']}"
    return f"{data['test']:,} test {units(metrics)}"


def stages(metrics: Metrics) -> dict[str, Row]:
    """The stages of this run by name, in the order they happened."""
    rows, official = {}, measures(metrics)
    for key, entry in metrics["stages"].items():
        described = metrics["described"].get(key)
        smaller = bool(described and described["shrinks"])
        low, high = entry.get("interval95", (None, None))
        timings = metrics.get("latency_ms", {}).get(key, {})
        rows[key] = Row(
            label=label(metrics, key),
            score=number(entry[next(iter(official))]),
            scores=[measure.show(number(entry[name])) for name, measure in official.items()],
            low=low,
            high=high,
            encoder=metrics["encoder_params_ratio"] if smaller else 1.0,
            total=metrics["total_params_ratio"] if smaller else 1.0,
            bytes=metrics["bytes_on_disk"].get(key),
            timings={batch: Timing(**times) for batch, times in timings.items()},
        )
    return rows


def batches(metrics: Metrics) -> list[str]:
    """Batch sizes that were timed, smallest first."""
    return list(metrics.get("latency_ms", {}).get("final", {}))


def majority(metrics: Metrics) -> float | None:
    """Accuracy of always answering the most common class of the test set; None without classes."""
    final = metrics["stages"]["final"]
    if "per_class" not in final:
        return None
    return float(max(scores["n"] for scores in final["per_class"].values()) / final["n"])
