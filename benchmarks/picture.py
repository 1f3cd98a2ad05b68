"""The picture of the README: accuracy kept against numbers kept, from committed results.

    python benchmarks/picture.py   # some seconds; writes docs/accuracy.png

MiniLM on Rotten Tomatoes, six epochs of tuning, means of three seeds with their range
(`benchmarks/results/lpaf_plus.json`, which `python benchmarks/lpaf_plus.py` makes).
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from lpaf_jax.core.files import read_json
from lpaf_jax.report.looks import looks
from lpaf_jax.report.svg import MUTED, png

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "lpaf_plus.json"
PICTURE = HERE.parent / "docs" / "accuracy.png"
# The recipe, the figure, and how it is called.
LINES = (
    ("lpaf-plus", "final", "lpaf-plus"),
    ("lpaf-plus", "before_tuning", "lpaf-plus, before tuning"),
    ("lpaf", "final", "lpaf, the paper's recipe"),
    ("svd-ft", "final", "svd-ft, plain SVD"),
)


def draw(rows: list[dict[str, Any]], figure: Any) -> None:
    axes = figure.subplots()
    axes.axhline(100, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.annotate(
        "before compression", (4, 100), xytext=(0, 4), textcoords="offset points", color=MUTED
    )
    look_of = looks(recipe for recipe, *_ in LINES)
    for recipe, figure_of, label in LINES:
        look = look_of[recipe]._asdict()
        if figure_of != "final":  # one colour for one method: hollow and dashed before tuning
            look |= {"linestyle": "dashed", "markerfacecolor": "white"}
        kept: dict[float, list[float]] = defaultdict(list)
        for row in rows:
            if row["recipe"] == recipe:
                kept[100 * row["params"]].append(100 * row[figure_of] / row["dense"])
        xs = sorted(kept)
        means = [float(np.mean(kept[x])) for x in xs]
        for x in xs:
            axes.plot(
                [x, x], [min(kept[x]), max(kept[x])], color=look["color"], linewidth=3, alpha=0.3
            )
        axes.plot(xs, means, label=label, **look)
    axes.set_xscale("log")
    axes.set_xticks([4, 6, 10, 16, 25, 50], ["4 %", "6 %", "10 %", "16 %", "25 %", "50 %"])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g} %")
    axes.set_xlabel("parameters kept in the compressible matrices")
    axes.set_ylabel("test accuracy kept")
    axes.set_title("MiniLM on Rotten Tomatoes, six epochs of tuning, three seeds")
    axes.legend(loc="lower right", handlelength=2.8)


def main() -> None:
    rows = read_json(RESULTS)["rows"]
    png(PICTURE, 520, 330, lambda figure: draw(rows, figure))
    print(PICTURE)


if __name__ == "__main__":
    main()
