"""Whether recipes differ by more than chance: the tables of tests on the page of a comparison."""

from collections.abc import Mapping
from typing import Any

from lpaf_jax.report.compare_facts import Found, measure
from lpaf_jax.report.markup import Child, Html, el, join, table


def run_by_run(found: Found) -> Html | None:
    """Each run against the baseline's of the same size and seed, example by example."""
    if not found["paired"]:
        return None
    base = found["baseline"]
    by_key = {(r["recipe"], r["params"], r["seed"]): r for r in found["rows"]}
    by = measure(found)
    rows: list[list[Child]] = []
    order = list(found["recipes"])

    def place(test: Mapping[str, Any]) -> tuple[float, int, int]:
        return -test["params"], order.index(test["recipe"]), test["seed"]

    for test in sorted(found["paired"], key=place):
        own, other = (by_key[n, test["params"], test["seed"]] for n in (test["recipe"], base))
        ahead = by.better(own["final"], other["final"])
        sign = "+" if ahead else "−" if own["final"] != other["final"] else ""
        judged = "hardly" if test["p_adjusted"] < 0.05 else "may be"
        gap = abs(own["final"] - other["final"])
        rows.append(
            [
                f"{test['recipe']}, {100 * test['params']:g} %, seed {test['seed']}",
                f"{sign}{gap:.3f}" if by.correlation else f"{sign}{100 * gap:.1f}",
                str(test["recipe_only"]),
                str(test["baseline_only"]),
                _probability(test["p"]),
                _probability(test["p_adjusted"]),
                judged,
            ]
        )
    heads = ["Run", f"{by.head}{'' if by.correlation else ', points'}"]
    heads += ["Right alone", f"{base} alone", "p", "p of all", "Chance?"]
    count = len(rows)
    text = (
        "Both models answer the same test examples. Those that only one of them has right are "
        "counted, and p is the probability that fair coins in their place come down at least as "
        "unevenly (McNemar's exact test). "
    )
    if count > 1:
        text += (
            f"Of {count} such tests some come out low by luck: “p of all” allows for that (Holm's "
            "correction), and by it the last column judges, at 5 %. "
        )
    text += "Each test is about two trained models; other seeds are the table's other rows."
    return join(el("p", text), table(heads, rows, class_="stack"))


def all_seeds(found: Found) -> Html | None:
    """Each recipe at each size against the dense model and the baseline, all seeds together."""
    if not found.get("pooled"):
        return None
    order = list(found["recipes"])
    tests = sorted(found["pooled"], key=lambda t: (-t["params"], order.index(t["recipe"])))
    rows: list[list[Child]] = [
        [
            f"{test['recipe']}, {100 * test['params']:g} %",
            "before compression" if test["against"] == "dense" else test["against"],
            f"{test['points']:+.2f}".replace("-", "−"),
            _probability(test["p"]),
            str(test["seeds"]),
        ]
        for test in tests
    ]
    text = (
        "Right answers of a method less those of another model, in points, over all seeds. p is "
        "the probability that a fair coin for each test example, which turns the sign of its "
        "difference, makes the sum at least as large (an exact test, for these test examples): one "
        "in twenty comes out below 0.05 by luck."
    )
    heads = ["Method", "Against", "Points", "p", "Seeds"]
    return join(el("p", text), table(heads, rows, class_="stack"))


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
