"""Small figures as inline SVG: one look, stable ids, nothing that loads from elsewhere."""

import io
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

# Okabe and Ito's palette (2008), told apart under the common colour-vision deficiencies.
INK, MUTED, GRID = "#23272b", "#646b73", "#e3e3dd"
# Its yellow is lost on white. The grey is dark: a lighter one is its green to who sees no green.
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#555b61"
PINK, SKY, AMBER = "#cc79a7", "#56b4e9", "#e69f00"

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    # Names come from users: a dollar sign is a dollar sign, not mathematics.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    # Lines of the grid and curves go on behind a key, not through its words.
    "legend.fontsize": 9.5,
    "legend.labelcolor": INK,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fancybox": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
# Widths are measured with DejaVu Sans, the widest of these, so the narrower faces a browser may
# pick instead never run into each other.
_FONTS = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"


def svg(name: str, label: str, width: float, height: float, draw: Callable[[Any], None]) -> str:
    """Draw on a fresh figure of `width` by `height` pixels and return it as an <svg> element.

    The same drawing gives the same text, byte for byte. `name` keeps ids apart from those of
    other figures on the page; `label` is read aloud in place of the picture.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        draw(figure)
        out = io.StringIO()
        nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    return _inline(out.getvalue(), name, label, width, height)


def plain_numbers(axis: Any) -> None:
    """Let an axis that is logarithmic show 50 and 100, and not powers as formulas.

    Call it when the axis has its limits: over more than two decades it shows powers of ten alone.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}")
    )
    axis.set_minor_formatter(NullFormatter())


def png(path: Path, width: float, height: float, draw: Callable[[Any], None]) -> None:
    """Draw on a fresh figure of `width` by `height` points and write it as a PNG, twice as fine."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(path, format="png", dpi=144)


def _inline(text: str, name: str, label: str, width: float, height: float) -> str:
    text = text[text.index("<svg") :]
    body = text[text.index(">") + 1 :]
    # One rule for every element of the page, not only of this figure: the page has its own.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', body))

    def keep(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    body = re.sub(r' id="([^"]*)"', keep, body)
    body = re.sub(r'(href="|url\()#([\w.-]+)', rf"\1#{name}-\2", body)
    body = re.sub(r"'DejaVu Sans'(, ?sans-serif)?", _FONTS, body)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
    )
    return head + body.strip()
