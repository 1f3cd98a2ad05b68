"""What a comparison of recipes shows: a page for a reader who never saw the paper, and a table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_write, read_json
from lpaf_jax.report import facts
from lpaf_jax.report.compare_facts import Found, Group, best, groups, measure, seeds, shown
from lpaf_jax.report.compare_four_bits import four_bits, said_of_four_bits
from lpaf_jax.report.compare_plots import figure_against_size
from lpaf_jax.report.compare_tests import all_seeds, run_by_run
from lpaf_jax.report.html import document
from lpaf_jax.report.markup import (
    Child,
    Html,
    details,
    el,
    figure,
    formula,
    join,
    responsive,
    table,
)
from lpaf_jax.report.measures import meanings
from lpaf_jax.report.prose import GLOSSARY
from lpaf_jax.report.sections import as_typed


def write_comparison(folder: Path) -> Path:
    """Write `folder`/compare.html from compare.json there and return its path.

    Raises:
        LpafError: compare.json is missing or damaged, or the page cannot be written.
    """
    found = read_json(folder / "compare.json")
    if not (isinstance(found, dict) and {"rows", "recipes"} <= found.keys()):
        raise LpafError(f"{folder / 'compare.json'} is not a comparison of lpaf")
    target = folder / "compare.html"
    with atomic_write(target) as temporary:
        temporary.write_text(render(found), encoding="utf-8")
    return target


def render(found: Found) -> str:
    """The page as text."""
    if not found["rows"]:
        title = "Comparison of compressions"
        body = join(el("h1", title), el("p", "No cell is finished yet.", class_="lead"))
        return document(title, el("main", body, _notes(found)))
    title = f"{facts.model_name(found)} on {facts.task_name(found)}"
    parts: dict[str, tuple[str, Html | None]] = {
        "results": ("Results", _results(found)),
        "size": ("By size", _picture(found)),
        "pooled": ("Beyond chance?", all_seeds(found)),
        "baseline": (f"Run by run against {found['baseline']}", run_by_run(found)),
        "costs": ("Cost of each method", _costs(found)),
        "nf4": ("Four bits instead, or as well", four_bits(found)),
        "methods": ("The methods", _methods(found)),
        "words": ("Glossary", _words(found)),
        "particulars": ("Details", _particulars(found)),
    }
    shown_parts = {key: part for key, part in parts.items() if part[1]}
    nav = el("nav", [el("a", name, href=f"#{key}") for key, (name, _) in shown_parts.items()])
    sections = [
        el("section", el("h2", name, id=key), part) for key, (name, part) in shown_parts.items()
    ]
    top = join(el("h1", f"Comparison report: {title}"), _lead(found), _notes(found), nav)
    foot = f"lpaf-jax · finished {facts.moment(found['finished'])}"
    main = el("main", el("header", top), sections, el("footer", foot, class_="small"))
    return document(f"{title}: comparison report", main)


def _lead(found: Found) -> Html:
    """Which recipe came out best at each size."""
    by, sizes = measure(found), groups(found)
    methods = len({row["recipe"] for row in found["rows"]})
    count = f"{methods} methods" if methods > 1 else "One method"
    runs = len(found["rows"])
    text = [
        f"{count} to compress {facts.model_name(found)} on {facts.task_name(found)}, in "
        f"{runs} run{'s' if runs > 1 else ''}."
    ]
    for params, of in sizes.items():
        first = best(of, by)
        comes = "is best, with" if len(of) > 1 else "reaches"
        text.append(
            f"With {100 * params:g} % of the compressible weights {first.recipe} {comes} "
            f"{by.name} {shown(by, first.score)}."
        )
    dense = [row["dense"] for row in found["rows"] if row["dense"] is not None]
    if dense:
        text.append(f"Before compression it was {by.show(sum(dense) / len(dense))}.")
    return el("p", " ".join(text), class_="lead")


def _notes(found: Found) -> Html | None:
    """What is missing, and what not to conclude."""
    notes = [f"{_cell(each)} failed: {each['why']}" for each in found["failed"]]
    left = found.get("missing", 0) - len(found["failed"])
    if left > 0:
        notes.append(f"{left} run{'s are' if left > 1 else ' is'} not finished yet.")
    if found["rows"]:
        clear = [t for t in found["paired"] if t["p_adjusted"] < 0.05]
        if found["paired"] and not clear:
            notes.append(
                f"No method differs from {found['baseline']} by more than chance on these test "
                "examples."
            )
        if len(seeds(found)) == 1:
            notes.append(
                "There is only one seed: another could change the order of methods that are "
                "close together."
            )
    if not notes:
        return None
    listed = el("ul", [el("li", note) for note in notes]) if len(notes) > 1 else el("p", notes)
    return el("div", listed, class_="notes")


def _cell(each: Mapping[str, Any]) -> str:
    return f"{each['recipe']} at {100 * each['params']:g} %, seed {each['seed']},"


def _results(found: Found) -> Html:
    """A table for each size, the best mean set off."""
    by, several = measure(found), len(seeds(found)) > 1
    parts: list[Html] = []
    for params, of in groups(found).items():
        first = best(of, by)
        heads, rows = _result_rows(found, of, several)
        parts.append(el("h3", f"{100 * params:g} % of the compressible weights"))
        parts.append(table(heads, rows, class_="stack", emphasis=of.index(first)))
    first_row = found["rows"][0]
    under = f"Highlighted: the best {'mean' if several else 'figure'} at each size."
    if several:
        under += " Figures are means over the seeds; the range is from the lowest to the highest."
    if first_row["interval"] is not None:
        under += (
            f" The 95 % interval reflects the choice of the {found['test']:,} test examples"
            if found.get("test")
            else " The 95 % interval reflects the choice of the test examples"
        )
        under += "; for several seeds, its ends are means." if several else "."
    return join(parts, el("p", under, class_="small"))


def _result_rows(
    found: Found, of: list[Group], several: bool
) -> tuple[list[str], list[list[Child]]]:
    by = measure(found)
    tuned = any(row["before_tuning"] != row["final"] for row in found["rows"])
    kept = any(row["retained"] is not None for row in found["rows"])
    held = any(row.get("validation") is not None for row in found["rows"])
    diverges = any(row.get("divergence") is not None for row in found["rows"])
    interval = any(row["interval"] is not None for row in found["rows"])
    heads = ["Method", by.head]
    heads += ["Range"] if several else []
    heads += ["95 % interval"] if interval else []
    heads += ["Before tuning"] if tuned else []
    heads += ["Validation"] if held else []
    heads += ["Divergence"] if diverges else []
    heads += ["Kept"] if kept else []
    heads += ["All weights"]
    heads += ["Seeds"] if several else []
    rows: list[list[Child]] = []
    for group in of:
        retained, ends = group.mean("retained"), group.interval
        low, high = min(group.scores), max(group.scores)
        rows.append(
            [
                group.recipe,
                shown(by, group.score),
                *([_range(by, low, high) if len(group.rows) > 1 else "–"] if several else []),
                *(["–" if ends is None else _range(by, *ends)] if interval else []),
                *([shown(by, group.mean("before_tuning"))] if tuned else []),
                *([shown(by, group.mean("validation"))] if held else []),
                *([_nats(group.mean("divergence"))] if diverges else []),
                *(["–" if retained is None else facts.percent(retained)] if kept else []),
                facts.percent(group.mean("total_params_ratio") or 0),
                *([str(len(group.rows))] if several else []),
            ]
        )
    return heads, rows


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _range(by: Any, low: float, high: float) -> str:
    one, other = shown(by, low), shown(by, high)
    return f"{one.removesuffix(' %')} to {other}"


def _picture(found: Found) -> Html:
    by = measure(found)
    caption = f"{'Down' if by.less else 'Up'} and to the left is better."
    if any(row["interval"] is not None for row in found["rows"]):
        caption += " Bars are 95 % intervals; methods of the same size are drawn slightly apart."
    if by.less:
        caption += " The vertical scale is logarithmic."
    both = (figure_against_size(found), figure_against_size(found, narrow=True))
    return figure(caption, responsive(*both))


def _costs(found: Found) -> Html:
    """Time, memory, speed and file of each recipe at each size, means over the seeds."""
    rows: list[list[Child]] = []
    timed = next((r["latency"] for r in found["rows"] if r["latency"]), None)
    sizes = groups(found)
    for params, of in sizes.items():
        for group in of:
            seconds, memory = group.mean("seconds"), group.mean("memory")
            rows.append(
                [
                    f"{group.recipe}, {100 * params:g} %",
                    "–" if seconds is None else facts.duration(seconds),
                    facts.size(memory),
                    *([_ms(group.latency)] if timed else []),
                    facts.size(group.mean("bytes")),
                ]
            )
    some = next(iter(sizes.values()))[0]
    before = ["before compression", "–", "–"]
    before += [_ms(some.dense_latency)] if timed else []
    rows.append([*before, facts.size(some.mean("bytes_dense"))])
    heads = ["Method and size", "Time to compress", "Memory"]
    heads += [f"Time for {timed['batch']} texts"] if timed else []
    heads += ["File"]
    text = (
        "The time covers all stages, as if each method were run alone; here, shared stages were "
        "run only once. It excludes loading and evaluation. Memory is the peak of the "
        "process in any of these stages; of a stage that was interrupted, only of the process that "
        "finished it."
    )
    return join(table(heads, rows, class_="stack"), el("p", text, class_="small"))


def _ms(value: float | None) -> str:
    return "–" if value is None else facts.milliseconds(value)


def _methods(found: Found) -> Html:
    items = []
    for name, entry in found["recipes"].items():
        stages = " → ".join(entry["stages"])
        items.append(el("dt", name))
        about = formula(entry["summary"] or "A custom recipe.")
        items.append(el("dd", about, f" Stages: {stages}."))
    return el("dl", items)


def _words(found: Found) -> Html:
    meaning = meanings({"metrics": [found["metric"]], "kind": found["kind"]})
    used = ["Compressible weights", "Factorized"]
    if any(row["interval"] is not None for row in found["rows"]):
        used.append("95 % interval")
    meaning |= {name: GLOSSARY[name] for name in used if name in GLOSSARY}
    meaning["Seed"] = (
        "The seed of all random choices of a run: the new head, the order of the examples, "
        "dropout. Runs with the same seed start from the same fine-tuned model."
    )
    if any(row.get("validation") is not None for row in found["rows"]):
        meaning["Validation"] = (
            "The same figure on the validation split. Use it to choose between methods: the best "
            "of many test figures is too optimistic."
        )
    if any(row.get("divergence") is not None for row in found["rows"]):
        meaning["Divergence"] = (
            "How far the predictions on the validation split are from those before compression: "
            + (
                "the mean Kullback-Leibler divergence of the probabilities, in nats."
                if found["kind"] == "classification"
                else "the mean squared difference."
            )
            + " It distinguishes methods with equally many correct answers."
        )
    items = [el("div", el("dt", name), el("dd", text)) for name, text in meaning.items()]
    return el("dl", items, class_="columns")


def _particulars(found: Found) -> Html:
    settings = [
        [el("code", text) for text in as_typed(name, value)]
        for name, value in found["settings"].items()
    ]
    versions = [[el("code", n), el("code", v)] for n, v in found["versions"].items()]
    seeds_of: list[list[Child]] = [
        [
            f"{r['recipe']}, {100 * r['params']:g} %, seed {r['seed']}",
            shown(measure(found), r["final"]),
            shown(measure(found), r["dense"]),
        ]
        for r in found["rows"]
    ]
    return join(
        details("Command", el("p", el("code", found["command"]))),
        details("Every run", table(["Run", measure(found).head, "Before compression"], seeds_of)),
        details("Settings of all runs", table(["Name", "Value"], settings, class_="plain")),
        details("Versions", table(["Name", "Value"], versions, class_="plain")),
    )


def print_comparison(found: Found, console: Console) -> None:
    """The table of a terminal, and what failed."""
    for each in found["failed"]:
        console.print(f"{_cell(each)} failed: {each['why']}", soft_wrap=True)
    if not found["rows"]:
        return
    by, several = measure(found), len(seeds(found)) > 1
    interval = any(row["interval"] is not None for row in found["rows"])
    tuned = any(row["before_tuning"] != row["final"] for row in found["rows"])
    timed = next((row["latency"] for row in found["rows"] if row["latency"]), None)
    heads = ["Size", by.head, *(["95 % interval"] if interval else [])]
    heads += [*(["Untuned"] if tuned else []), "File"]
    heads += [f"Batch {timed['batch']}"] if timed else []
    heads += ["Seeds"] if several else []
    columns = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns.add_column("Recipe", overflow="fold")
    for head in heads:
        columns.add_column(head, justify="right", no_wrap=True)
    for params, of in groups(found).items():
        first = best(of, by)
        for group in of:
            ends = group.interval
            columns.add_row(
                group.recipe,
                f"{100 * params:g} %",
                shown(by, group.score),
                *(["–" if ends is None else _range(by, *ends)] if interval else []),
                *([shown(by, group.mean("before_tuning"))] if tuned else []),
                facts.size(group.mean("bytes")),
                *([_ms(group.latency)] if timed else []),
                *([str(len(group.rows))] if several else []),
                style="bold" if group is first else "",
                end_section=group is of[-1],
            )
    console.print(columns)
    for sentence in said_of_four_bits(found):
        console.print(sentence)
    clear = [t for t in found["paired"] if t["p_adjusted"] < 0.05]
    if found["paired"]:
        console.print(
            f"{len(clear)} of {len(found['paired'])} runs differ from {found['baseline']} by more "
            "than chance (McNemar's test at 5 %, Holm's correction)."
        )
