"""What runs come to beside each other: a row for each, tests of pairs, and means over seeds."""

import base64
import datetime
import json
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from lpaf_jax.data.metrics import compare_paired, sign_flip
from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.measures import MEASURES, Measure, primary

Key = tuple[str, float, int]
Found = Mapping[str, Any]

_BATCH = "32"


def gather(runs: Mapping[Key, tuple[Metrics, Metrics]], baseline: str) -> dict[str, Any]:
    """What compare.json says of the finished runs, from their metrics.json and settings.json.

    Args:
        runs: by recipe, share of the numbers kept and seed.
        baseline: the recipe that the others are tested against.
    """
    if not runs:
        return {"rows": [], "paired": []}
    first = next(iter(runs.values()))[0]
    key, _ = primary(first)
    latest = max(runs.values(), key=lambda run: str(run[0]["finished"]))[0]
    return {
        "model": first["model"],
        "task": first["task"],
        "kind": first.get("kind", "classification"),
        "metric": key,
        "test": first["data"].get("test"),
        "rows": [_row(*k, *run, _seconds(k, runs)) for k, run in runs.items()],
        "paired": _paired({k: metrics for k, (metrics, _) in runs.items()}, baseline),
        "pooled": _pooled({k: metrics for k, (metrics, _) in runs.items()}, baseline),
        "versions": latest["versions"],
        "threads": first.get("latency_ms", {}).get("threads"),
        "finished": latest["finished"],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _row(
    recipe: str, params: float, seed: int, metrics: Metrics, _: Metrics, seconds: dict[str, Any]
) -> dict[str, Any]:
    key, _measure = primary(metrics)
    stages = metrics["stages"]
    final = stages["final"]
    first = next(iter(stages))
    return {
        "recipe": recipe,
        "params": params,
        "seed": seed,
        "metric": key,
        "dense": stages[first][key],
        "before_tuning": _before_tuning(metrics, key),
        "final": final[key],
        "validation": metrics.get("validation", {}).get("final"),
        "divergence": metrics.get("validation", {}).get("divergence"),
        "retained": metrics["retained"],
        "interval": final.get("interval95") if key == "accuracy" else None,
        "encoder_params_ratio": metrics["encoder_params_ratio"],
        "total_params_ratio": metrics["total_params_ratio"],
        "bytes": metrics["bytes_on_disk"]["final"],
        "bytes_dense": metrics["bytes_on_disk"]["dense"],
        "latency": _latency(metrics),
        "memory": metrics.get("peak_memory_bytes"),
        "nf4": metrics.get("nf4"),
        **seconds,
    }


def _before_tuning(metrics: Metrics, key: str) -> float | None:
    """The figure right after the factorization: of the last smaller model nothing was trained for.

    None where the metrics do not tell.
    """
    entry = metrics["described"]
    untrained = [n for n, each in entry.items() if each["shrinks"] and not each["logs"]]
    if not untrained:
        return None
    value: float | None = metrics["stages"][untrained[-1]][key]
    return value


def _latency(metrics: Metrics) -> dict[str, Any] | None:
    """Median milliseconds at batch 32, or at the largest that was timed."""
    batches = facts.batches(metrics)
    if not batches:
        return None
    batch = _BATCH if _BATCH in batches else max(batches, key=int)
    timed = metrics["latency_ms"]
    return {
        "batch": int(batch),
        "final": timed["final"][batch]["median"],
        "dense": timed["dense"][batch]["median"],
    }


def _seconds(key: Key, runs: Mapping[Key, tuple[Metrics, Metrics]]) -> dict[str, Any]:
    """The time of each stage, that of a shared one being the time it took where it was made.

    `seconds` is what the recipe would take alone; None where the time of a stage is not known.
    """
    lent: dict[str, float] = {}
    for (*_, seed), (metrics, settings) in runs.items():
        if seed == key[2]:
            spent = metrics["seconds"]
            lent |= {
                json.dumps(steps): spent[name]
                for name, steps in settings.get("steps", {}).items()
                if name in spent
            }
    metrics, settings = runs[key]
    own = metrics["seconds"]
    steps = settings.get("steps", {})
    names = [name for name in metrics["stages"] if name in metrics["described"]]
    of = {name: own.get(name, lent.get(json.dumps(steps.get(name)))) for name in names}
    known = [value for value in of.values() if value is not None]
    total = round(sum(known), 2) if len(known) == len(of) else None
    return {"seconds": total, "seconds_of": of, "shared": [n for n in names if n not in own]}


def _paired(runs: Mapping[Key, Metrics], baseline: str) -> list[dict[str, Any]]:
    """McNemar's test of each run against that of the baseline of the same size and seed."""
    found: list[dict[str, Any]] = []
    for (recipe, params, seed), metrics in runs.items():
        other = runs.get((baseline, params, seed))
        if recipe == baseline or other is None:
            continue
        bits = [_right(each) for each in (other, metrics)]
        if bits[0] is None or bits[1] is None or bits[0].size != bits[1].size:
            continue
        entry = compare_paired(bits[0], bits[1])
        found.append(
            {
                "recipe": recipe,
                "params": params,
                "seed": seed,
                "baseline_only": entry["dense_only"],
                "recipe_only": entry["final_only"],
                "p": entry["p"],
            }
        )
    for test, p in zip(found, holm([test["p"] for test in found]), strict=True):
        test["p_adjusted"] = p
    return found


def _pooled(runs: Mapping[Key, Metrics], baseline: str) -> list[dict[str, Any]]:
    """Each recipe at each size against the dense model and the baseline, all seeds together."""
    groups: dict[tuple[str, float], list[int]] = {}
    for recipe, params, seed in runs:
        groups.setdefault((recipe, params), []).append(seed)
    found = []
    for (recipe, params), seeds in groups.items():
        own = {seed: runs[recipe, params, seed] for seed in seeds}
        others = {
            seed: runs[baseline, params, seed]
            for seed in seeds
            if recipe != baseline and (baseline, params, seed) in runs
        }
        for against, end, beside in (("dense", "dense", own), (baseline, "final", others)):
            pairs = [(_right(each, end), _right(own[seed])) for seed, each in beside.items()]
            bits = [(a, b) for a, b in pairs if a is not None and b is not None]
            if not bits or len({x.size for pair in bits for x in pair}) > 1:
                continue
            differences = sum(b.astype(int) - a for a, b in bits)
            found.append(
                {
                    "recipe": recipe,
                    "params": params,
                    "against": against,
                    "seeds": len(bits),
                    "points": 100 * float(np.mean(differences)) / len(bits),
                    "p": sign_flip(np.asarray(differences)),
                }
            )
    return found


def _right(metrics: Metrics, end: str = "final") -> np.ndarray | None:
    """Which test examples the final model, or that of the other end, has right."""
    packed = metrics.get("right", {}).get(end)
    if packed is None:
        return None
    bits = np.frombuffer(base64.b64decode(packed), np.uint8)
    return np.unpackbits(bits, count=metrics["stages"]["final"]["n"]).astype(bool)


def holm(values: list[float]) -> list[float]:
    """Probabilities adjusted for their number: of all those below 5 %, one is wrong in 5 %.

    With p_(1) ≤ ... ≤ p_(m): adjusted p_(i) = max_{j ≤ i} min(1, (m - j + 1) p_(j)).

    S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = largest
    return adjusted


class Group(NamedTuple):
    """The rows of one recipe at one size, over seeds."""

    recipe: str
    params: float
    rows: list[Found]

    def mean(self, name: str) -> float | None:
        """Mean over the seeds; None where one has no value."""
        values = [value for row in self.rows if (value := row.get(name)) is not None]
        return fmean(values) if len(values) == len(self.rows) else None

    @property
    def scores(self) -> list[float]:
        """The final figures; JSON has null for one that is not finite."""
        return [facts.number(row["final"]) for row in self.rows]

    @property
    def score(self) -> float:
        """Their mean."""
        return fmean(self.scores)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, its ends being means over the seeds: of the draw of test examples."""
        ends = [row["interval"] for row in self.rows]
        if None in ends:
            return None
        return fmean(low for low, _ in ends), fmean(high for _, high in ends)

    def in_nf4(self, end: str = "final") -> tuple[float, float] | None:
        """Score and bytes of the final or the dense model in four bits; None if unknown."""
        rounded = [row.get("nf4") for row in self.rows]
        if None in rounded:
            return None
        found = [each[end] for each in rounded if each is not None]
        return fmean(facts.number(x["score"]) for x in found), fmean(x["bytes"] for x in found)

    @property
    def latency(self) -> float | None:
        """Mean of the medians of the final model."""
        times = [row["latency"] for row in self.rows]
        return None if None in times else fmean(t["final"] for t in times)

    @property
    def dense_latency(self) -> float | None:
        """That of the dense model, timed in turns with it."""
        times = [row["latency"] for row in self.rows]
        return None if None in times else fmean(t["dense"] for t in times)


def groups(found: Found) -> dict[float, list[Group]]:
    """By size, the largest first; recipes in the order they were given in."""
    order = {name: i for i, name in enumerate(found["recipes"])}
    rows = sorted(found["rows"], key=lambda r: (-r["params"], order[r["recipe"]], r["seed"]))
    by: dict[float, dict[str, list[Found]]] = {}
    for row in rows:
        by.setdefault(row["params"], {}).setdefault(row["recipe"], []).append(row)
    return {
        params: [Group(recipe, params, rows) for recipe, rows in of.items()]
        for params, of in by.items()
    }


def measure(found: Found) -> Measure:
    """The metric that the recipes are compared by."""
    return MEASURES[found["metric"]]


def best(of: list[Group], by: Measure) -> Group:
    """The one with the best mean; the first of equals."""
    return (min if by.less else max)(of, key=lambda group: group.score)


def seeds(found: Found) -> list[int]:
    """All seeds there are."""
    return sorted({row["seed"] for row in found["rows"]})


def shown(by: Measure, value: float | None) -> str:
    """A value of the metric; a dash where there is none."""
    if value is None:
        return "–"
    return by.show(value) if math.isfinite(value) else "not finite"
