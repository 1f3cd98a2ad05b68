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
    heads += ["Only this one right", f"Only {base} right", "p", "Adjusted p", "Chance?"]
    count = len(rows)
    text = (
        "Both models answer the same test examples. The test counts the examples that only one "
        "of them gets right; p is the probability that fair coin tosses would divide them at "
        "least as unevenly (McNemar's exact test). "
    )
    if count > 1:
        text += (
            f"Of {count} such tests, some are low by chance: “adjusted p” corrects for that "
            "(Holm), and the last column is based on it, at 5 %. "
        )
    text += "Each test compares two trained models; other seeds have their own rows."
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
        "Correct answers of a method minus those of another model, in points, over all seeds. p "
        "is the probability of a sum at least as large if the sign of each test example's "
        "difference were random (an exact sign-flip test for these examples): one in twenty is "
        "below 0.05 by chance."
    )
    heads = ["Method", "Against", "Points", "p", "Seeds"]
    return join(el("p", text), table(heads, rows, class_="stack"))


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
