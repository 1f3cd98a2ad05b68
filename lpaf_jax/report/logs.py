"""The training log as curves."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

Line = list[tuple[float, float]]


class Phase(NamedTuple):
    """One training stage: (step, value) pairs in step order, non-finite values left out."""

    loss: Line
    validation: Line
    sparsity: Line
    p: Line

    def lines(self) -> tuple[Line, ...]:
        """All curves of the stage."""
        return (self.loss, self.validation, self.sparsity, self.p)


Log = dict[str, Phase]

_KEYS = {"loss": "loss", "validation": "validation_accuracy", "sparsity": "sparsity", "p": "p"}


def read_log(path: Path) -> Log:
    """Curves per stage, in the order the stages first appear; empty where there is no file.

    A killed run may leave half a line behind, and a resumed one repeats the steps since its last
    checkpoint: lines that are not JSON objects are passed over, and the last word on a step counts.
    """
    if not path.exists():
        return {}
    values: dict[str, dict[str, dict[float, float]]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = _row(text)
        step = row.get("step")
        if not _finite(step) or "stage" not in row:
            continue
        lines = values.setdefault(str(row["stage"]), {name: {} for name in _KEYS})
        for name, key in _KEYS.items():
            if _finite(value := row.get(key)):
                lines[name][step] = value
    found = {
        stage: Phase(**{name: sorted(line.items()) for name, line in lines.items()})
        for stage, lines in values.items()
    }
    return {stage: phase for stage, phase in found.items() if any(phase.lines())}


def _row(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
