"""Rounding to four bits beside the methods of a comparison, and on top of them."""

from lpaf_jax.report import facts
from lpaf_jax.report.compare_facts import Found, Group, groups, measure, shown
from lpaf_jax.report.markup import Child, Html, el, join, table


def four_bits(found: Found) -> Html | None:
    """Each model as it is and in four bits, beside the dense one."""
    by = measure(found)
    every = _every(found)
    if not (told := said_of_four_bits(found)):
        return None
    rows: list[list[Child]] = []
    for group in every:
        score, size = group.in_nf4() or (None, None)
        cells = [shown(by, group.score), facts.size(group.mean("bytes"))]
        cells += [shown(by, score), facts.size(size)]
        rows.append([f"{group.recipe}, {100 * group.params:g} %", *cells])
    dense = _all_together(every)
    score, size = dense.in_nf4("dense") or (None, None)
    cells = [shown(by, dense.mean("dense")), facts.size(dense.mean("bytes_dense"))]
    rows.append(["before compression", *cells, shown(by, score), facts.size(size)])
    heads = ["Method and size", by.head, "File", f"{by.head} in NF4", "File in NF4"]
    under = (
        "NF4 stores the matrices and factors of the blocks in 4.13 bits per weight, scales "
        "included; everything else stays as it is. Nothing was trained after rounding. Files are "
        "as the runs wrote them: after training with a task, in float32."
    )
    return join(
        el("p", " ".join(told)),
        table(heads, rows, class_="stack"),
        el("p", under, class_="small"),
    )


def said_of_four_bits(found: Found) -> list[str]:
    """What rounding alone does beside the methods, in sentences; none where it is not known."""
    by = measure(found)
    every = _every(found)
    dense = _all_together(every).in_nf4("dense")
    if dense is None:
        return []
    score, size = dense
    told = [
        f"Rounded to four bits (NF4) and otherwise unchanged, the dense model has {by.name} "
        f"{shown(by, score)} in {facts.size(size)}."
    ]
    beaten = [g for g in every if (g.mean("bytes") or 0) >= size and not by.better(g.score, score)]
    count = len(every)
    if len(beaten) == count:
        told.append("Every compressed model is larger than that and no better.")
    elif beaten:
        verb = "is" if len(beaten) == 1 else "are"
        told.append(f"{len(beaten)} of the {count} compressed models {verb} larger and no better.")
    else:
        told.append("No compressed model is both larger and worse.")
    rounded = [(group, each) for group in every if (each := group.in_nf4()) is not None]
    smaller = [(group, each) for group, each in rounded if each[1] <= size]
    if smaller:
        choose = min if by.less else max
        group, (score, size) = choose(smaller, key=lambda pair: pair[1][0])
        told.append(
            "Of the models that are no larger than that when rounded, the best is "
            f"{group.recipe} at {100 * group.params:g} %: {by.name} {shown(by, score)} in "
            f"{facts.size(size)}."
        )
    return told


def _every(found: Found) -> list[Group]:
    return [group for of in groups(found).values() for group in of]


def _all_together(every: list[Group]) -> Group:
    """What is known of the dense model, of which all runs tell."""
    return Group("", 1.0, [row for group in every for row in group.rows])
