"""The outcome of a run in plain sentences, the bad news included."""

from typing import NamedTuple

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics, Stage

# Up to five percent, a ratio of two timings or sizes is called no change.
_SAME = 1.05


def statement(metrics: Metrics) -> str:
    """What was done and what came of it, in at most two sentences."""
    dense, final = facts.stage(metrics, "dense"), facts.stage(metrics, "final")
    text = f"{facts.model_name(metrics)} fine-tuned on {facts.task_name(metrics)}"
    if final is None:
        done = ", ".join(row.label.lower() for row in facts.stages(metrics)) or "none"
        return f"{text}: the run is not finished. Stages with results so far: {done}."
    if final.encoder is not None:
        text += f": compressible weights reduced to {facts.percent(final.encoder)}"
        if final.total is not None:
            text += f" of their number (the whole model to {facts.percent(final.total)})"
    text += f", {_accuracy(metrics, dense, final)}."
    clauses = []
    if file := _file(dense, final):
        clauses.append(f"the file is {file}")
    if speed := _speed(dense, final):
        clauses.append(f"inference is {speed}")
    if not clauses:
        return text
    second = ", and ".join(clauses)
    return f"{text} {second[0].upper()}{second[1:]}."


def summary_line(metrics: Metrics) -> str:
    """The outcome on one line of plain text (not terminal markup: names are kept as given)."""
    dense, final = facts.stage(metrics, "dense"), facts.stage(metrics, "final")
    line = f"{facts.model_name(metrics)} on {facts.task_name(metrics)}"
    if final is None:
        return f"{line}: not finished"
    if final.encoder is not None:
        line += f", {facts.percent(final.encoder)} of the compressible weights"
    parts = [_accuracy(metrics, dense, final)]
    if file := _file(dense, final):
        parts.append(f"file {file}")
    if speed := _speed(dense, final):
        parts.append(speed)
    return f"{line}: {'; '.join(parts)}"


def _accuracy(metrics: Metrics, dense: Stage | None, final: Stage) -> str:
    kept = facts.retained(metrics)
    if final.accuracy is None:
        return "accuracy not measured"
    reached = facts.percent(final.accuracy)
    if dense is None or dense.accuracy is None or kept is None:
        return f"accuracy {reached}"
    before = facts.percent(dense.accuracy)
    if final.accuracy > dense.accuracy:
        return f"accuracy {reached}, above the {before} it had before"
    return f"{facts.percent(kept)} of the accuracy kept ({reached} of {before})"


def compared(before: float, after: float, less: str, more: str, same: str) -> str:
    """`1.8× less`, `1.2× more` or `same`, for two positive amounts of which less is better."""
    ratio, word = (before / after, less) if before >= after else (after / before, more)
    if ratio <= _SAME:
        return same
    return f"{ratio:.1f}× {word}"


def _file(dense: Stage | None, final: Stage) -> str:
    if dense is None or not dense.bytes or not final.bytes:
        return ""
    words = compared(dense.bytes, final.bytes, "smaller", "larger", "about as large")
    return f"{words} ({facts.size(dense.bytes)} to {facts.size(final.bytes)})"


class Speed(NamedTuple):
    """How the final model's time compares with the dense one's at one batch size."""

    batch: str
    words: str
    slower: bool
    overlap: bool


def speeds(metrics: Metrics) -> list[Speed]:
    """One comparison per batch size timed for both models, smallest batch first."""
    return _speeds(facts.stage(metrics, "dense"), facts.stage(metrics, "final"))


def _speeds(dense: Stage | None, final: Stage | None) -> list[Speed]:
    rows = []
    for batch, after in (final.timings if final else {}).items():
        before = dense.timings.get(batch) if dense else None
        if before is None or before.median <= 0 or after.median <= 0:
            continue
        words = compared(before.median, after.median, "faster", "slower", "about as fast")
        ends = (before.low, before.high, after.low, after.high)
        overlap = None not in ends and before.low <= after.high and after.low <= before.high  # type: ignore[operator]
        rows.append(Speed(batch, words, "slower" in words, overlap))
    return rows


def _speed(dense: Stage | None, final: Stage) -> str:
    rows = _speeds(dense, final)
    ends = [rows[-1], rows[0]] if len(rows) > 1 else rows
    return " and ".join(f"{row.words} at batch {row.batch}" for row in ends)


def verdicts(metrics: Metrics) -> list[str]:
    """What a careful reader should know before quoting the headline, worst matters included."""
    dense, final = facts.stage(metrics, "dense"), facts.stage(metrics, "final")
    if final is None:
        return ["The run has no final model yet, so nothing can be said about the outcome."]
    notes = []
    if dense is not None and dense.accuracy is not None and final.accuracy is not None:
        notes.append(_difference(dense, final))
    common = facts.majority(metrics)
    if common is not None and final.accuracy is not None and final.accuracy <= common:
        notes.append(
            "The final model is no better than always answering the most common class "
            f"({facts.percent(common)})."
        )
    rough = facts.stage(metrics, "factorized")
    if (
        rough is not None
        and None not in (rough.accuracy, final.accuracy)
        and final.accuracy <= rough.accuracy  # type: ignore[operator]
    ):
        notes.append(
            "Tuning after the factorization did not help: the factorized model scored "
            f"{facts.percent(rough.accuracy)} before it and {facts.percent(final.accuracy)} after."
        )
    if dense is not None and dense.bytes and final.bytes and final.bytes >= dense.bytes:
        notes.append("The final file is not smaller than the dense model's.")
    for row in speeds(metrics):
        if row.slower:
            notes.append(f"At batch {row.batch} the final model is {row.words} than the dense one.")
        elif row.overlap and row.words != "about as fast":
            notes.append(
                f"At batch {row.batch} the fastest and slowest timings of the two models overlap: "
                "the machine was too noisy to be sure of the speed-up."
            )
    return notes


def _difference(dense: Stage, final: Stage) -> str:
    """The change in accuracy, and what the two intervals allow one to say about it."""
    assert dense.accuracy is not None
    assert final.accuracy is not None
    points = 100 * (final.accuracy - dense.accuracy)
    if abs(points) < 0.05:
        change = "The final model is as accurate as the dense one on the test set."
    else:
        word = "above" if points > 0 else "below"
        change = f"The final model is {abs(points):.1f} percentage points {word} the dense one."
    if None in (dense.low, dense.high, final.low, final.high):
        return f"{change} No interval was stored, so chance cannot be judged."
    apart = final.high < dense.low or dense.high < final.low  # type: ignore[operator]
    if apart:
        return (
            f"{change} The 95 % intervals do not overlap: the difference is larger than the luck "
            "of the drawn test examples explains."
        )
    asked = f"with {facts.count(final.n)} test examples" if final.n else "on this test set"
    return f"{change} The 95 % intervals overlap: {asked} a difference of this size may be chance."
