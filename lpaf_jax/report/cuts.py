"""What a factorization without training cost each matrix, as the page shows it."""

from collections.abc import Mapping
from typing import Any

from lpaf_jax.factors import KINDS
from lpaf_jax.ranks import RANK_RULES
from lpaf_jax.report import facts, matrix_names
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.markup import Child, Html, details, el, join, table

Cut = Mapping[str, Any]


def matrices(metrics: Metrics) -> Html | None:
    """Rank and loss by kind of matrix, and of each; None where a run has noted neither."""
    found = [cut | {"name": cut["path"]} for cut in metrics.get("matrices", ())]
    if not found or any("record" not in cut for cut in found):  # of an earlier version
        return None
    rows = sorted(found, key=matrix_names.order)
    worst = max(rows, key=lambda cut: cut["error"])
    intro = (
        "Output lost is the relative error of a matrix's outputs on the calibration text after "
        f"compression: {facts.percent(metrics['output_energy_lost'])} on average, "
        f"{facts.percent(worst['error'])} at worst, in {matrix_names.short_name(worst['name'])} "
        "(layers are counted from 0)."
    )
    if whole := sum(_is_whole(cut) for cut in rows):
        are = "matrix is" if whole == 1 else "matrices are"
        worth = not RANK_RULES[metrics["settings"].get("ranks", "share")].whole
        pays = ", where that is the better use of the budget" if worth and whole < len(rows) else ""
        intro += f" {whole} {are} left dense{pays}."
    sliced = any(_kind(cut) == "sliced" for cut in rows)
    if sliced:
        values = any("heads" in cut["record"] for cut in rows if _kind(cut) == "sliced")
        which = "Feed-forward layers" + (" and attention values" if values else "")
        intro += (
            f" {which} have lost channels in all matrices that share them; their loss is that of "
            "the last of these"
        )
        made_up = metrics["settings"].get("channels_by") != "norms"
        intro += ", after the remaining channels were adjusted to compensate." if made_up else "."
    what = "Rank or channels" if sliced else "Rank"
    heads = ["Matrix", "in × out", what, "Weights kept", "Output lost, mean", "Output lost, max"]
    each = _each(rows, what.lower())
    return join(el("p", intro), table(heads, _by_kind(rows), class_="stack"), each)


def _by_kind(rows: list[Cut]) -> list[list[Child]]:
    kinds: dict[str, list[Cut]] = {}
    for cut in rows:
        kinds.setdefault(matrix_names.kind(cut["name"]), []).append(cut)
    lines: list[list[Child]] = []
    for kind, of in kinds.items():
        dense = sum(_dense(cut) for cut in of)
        lines.append(
            [
                kind,
                ", ".join(dict.fromkeys(_shape(cut) for cut in of)),
                _ranks(of),
                facts.percent(sum(_kept(cut) for cut in of) / dense),
                facts.percent(sum(cut["error"] for cut in of) / len(of)),
                facts.percent(max(cut["error"] for cut in of)),
            ]
        )
    return lines


def _each(rows: list[Cut], what: str) -> Html:
    body: list[list[Child]] = [
        [
            el("code", cut["name"]),
            _shape(cut),
            _ranks([cut]),
            facts.percent(_kept(cut) / _dense(cut)),
            facts.percent(cut["error"]),
        ]
        for cut in rows
    ]
    heads = ["Matrix", "in × out", what, "weights kept", "output lost"]
    return details(f"All {len(rows)} matrices", table(heads, body, class_="compact"))


def _ranks(of: list[Cut]) -> str:
    """`96`, `64 to 128`, `90 terms`, `900 channels`, or that some are whole."""
    shown: list[str] = []
    known: set[str] = set()
    for kind, count, unit in (
        ("low_rank", lambda cut: cut["record"]["rank"], ""),
        ("kronecker", lambda cut: cut["record"]["rank"], " terms"),
        ("sliced", _channels, " channels"),
    ):
        counts = [count(cut) for cut in of if _kind(cut) == kind]
        shown += [f"{_range(counts)}{unit}"] if counts else []
        known.add(kind)
    others = [cut["record"] for cut in of if cut["record"] and _kind(cut) not in known]
    shown += dict.fromkeys(KINDS[record["kind"]].summary(record) for record in others)
    shown += ["full"] if any(_is_whole(cut) for cut in of) else []
    return ", ".join(shown)


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least}" if least == most else f"{least} to {most}"


def _is_whole(cut: Cut) -> bool:
    return cut["record"] is None


def _kind(cut: Cut) -> str | None:
    return None if cut["record"] is None else str(cut["record"]["kind"])


def _channels(cut: Cut) -> int:
    """How many are left on the side where some are gone."""
    given, taken = (int(cut["record"][side]) for side in ("inputs", "outputs"))
    return given if given < cut["shape"][0] else taken


def _shape(cut: Cut) -> str:
    return " × ".join(map(str, cut["shape"]))


def _dense(cut: Cut) -> int:
    m, n = cut["shape"]
    return int(m * n)


def _kept(cut: Cut) -> int:
    record, (m, n) = cut["record"], cut["shape"]
    return _dense(cut) if record is None else KINDS[record["kind"]].size(record, (m, n))
