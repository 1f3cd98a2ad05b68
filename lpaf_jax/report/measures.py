"""The official metrics as a person reads them: their names, and what a value looks like."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lpaf_jax.data.examples import LESS_IS_BETTER


class Measure(NamedTuple):
    """A metric.

    Attributes:
        name: within a sentence.
        head: of a column.
        correlation: a number from -1 to 1, where other metrics are shares.
        hub: what model hubs call it.
        less: an amount above 0 of which less is better, compared by ratios; infinite where it is
            above all floats.
    """

    name: str
    head: str
    correlation: bool
    hub: str
    less: bool = False

    @property
    def titled(self) -> str:
        """The name at an axis, with the unit of `drawn`."""
        return self.name if self.correlation or self.less else f"{self.name}, %"

    @property
    def notable(self) -> float:
        """By so much two values of `gap` differ more than two sets of texts usually make them."""
        return 0.1 if self.less else 0.02

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is better than `other`."""
        return one < other if self.less else one > other

    def gap(self, one: float, other: float) -> float:
        """How far apart two values are: the difference, or of amounts that of the logarithms."""
        return math.log(one) - math.log(other) if self.less else one - other

    def show(self, value: float) -> str:
        """`81.3 %`, `0.813` of a correlation, `48.8` of an amount."""
        if self.less:
            return amount(value)
        return f"{value:.3f}" if self.correlation else f"{100 * value:.1f} %"

    def apart(self, difference: float) -> str:
        """The size of a difference: `1.2 percentage points`, or `0.012` of a correlation."""
        size = abs(difference) if self.correlation else abs(100 * difference)
        least, digits = (0.001, 3) if self.correlation else (0.1, 1)
        shown = f"{size:.{digits}f}" if size >= least / 2 else f"less than {least}"
        return shown if self.correlation else f"{shown} percentage points"


def amount(value: float) -> str:
    """An amount above 0 to three figures or so."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{1 if value >= 10 else 2}f}"


MEASURES = {
    "accuracy": Measure("accuracy", "Accuracy", False, "accuracy"),
    "f1": Measure("F1", "F1", False, "f1"),
    "exact": Measure("exact match", "Exact", False, "exact_match"),
    "mcc": Measure("Matthews correlation", "MCC", True, "matthews_correlation"),
    "pearson": Measure("Pearson correlation", "Pearson", True, "pearsonr"),
    "spearman": Measure("Spearman correlation", "Spearman", True, "spearmanr"),
    "similarity": Measure("similarity", "Similarity", False, "cosine_similarity"),
    "perplexity": Measure(
        "perplexity", "Perplexity", False, "perplexity", "perplexity" in LESS_IS_BETTER
    ),
}

_MEANINGS = {
    "mcc": (
        "The correlation of predictions and labels (also called phi), from -1 to 1; a constant "
        "prediction gets 0. Unlike accuracy, it is not inflated when one class is far more "
        "common than the others."
    ),
    "pearson": (
        "How close the predicted values are to a linear function of the labels: 1 if they are "
        "one, 0 if there is no linear relation."
    ),
    "spearman": "Pearson's correlation of the ranks: only the order of the values counts.",
    "perplexity": (
        "The number of equally likely tokens that the model in effect chooses between: e to the "
        "power of the mean negative log-probability of the next token. Lower is better; 1 is the "
        "minimum. Figures with different tokenizers or window lengths are not comparable."
    ),
    "similarity": (
        "The mean cosine, over all tokens, between the last hidden states of the model and those "
        "of the dense one: 100 % if their directions are the same. It measures how close the "
        "model stays to the dense one, not how good its predictions are."
    ),
    "exact": (
        "The share of questions whose answer equals one of the reference answers, ignoring case, "
        "articles and punctuation."
    ),
}
_F1 = {
    "classification": (
        "The harmonic mean of precision and recall of the positive class, the second one of the "
        "task."
    ),
    "span": (
        "The harmonic mean of precision and recall of the words of an answer, against the "
        "reference answer that fits best; the mean over all questions."
    ),
}


def measures(metrics: Mapping[str, Any]) -> dict[str, Measure]:
    """The official metrics of a run by key, the primary one first."""
    return {key: MEASURES[key] for key in metrics.get("metrics", ["accuracy"])}


def primary(metrics: Mapping[str, Any]) -> tuple[str, Measure]:
    """The metric that models are compared by, and its key."""
    return next(iter(measures(metrics).items()))


def meanings(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the metrics of a run say, by their names; everybody knows accuracy."""
    known = _MEANINGS | {"f1": _F1.get(metrics.get("kind", ""), "")}
    found = {measure.name: known.get(key) for key, measure in measures(metrics).items()}
    return {name[0].upper() + name[1:]: text for name, text in found.items() if text}
