"""The training log as curves."""

import json
from pathlib import Path
from typing import NamedTuple

Line = list[tuple[int, float]]


class Phase(NamedTuple):
    """One training stage: (step, value) pairs in step order; `validation` by any metric."""

    loss: Line
    validation: Line
    sparsity: Line
    p: Line


Log = dict[str, Phase]

_VALIDATION = "validation_"  # what a metric is called after that


def read_log(path: Path) -> Log:
    """Curves per stage, in the order the stages were run; empty where there is no file.

    A stage that was resumed has each step once: its older rows were dropped when it went on.
    """
    if not path.exists():
        return {}
    log: Log = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        phase = log.setdefault(row["stage"], Phase([], [], [], []))
        for key, value in row.items():
            name = "validation" if key.startswith(_VALIDATION) else key
            if name in Phase._fields:
                getattr(phase, name).append((row["step"], value))
    return log
