"""HTML that cannot forget to escape: text is escaped unless it is already markup."""

import re
from collections.abc import Sequence
from html import escape


class Html(str):
    """Markup, passed through as it is. Any other string is text."""

    __slots__ = ()


Child = str | None | Sequence["Child"]

# Below a single letter or a bracket: a name of several words is none.
_INDEX = re.compile(r"((?<!\w)[^\W_]|[)²])_([A-Za-z]{1,2}|\d)(?![A-Za-z0-9_])")
_VOID = {"meta", "br"}


def text(value: str) -> Html:
    """Escaped text, a number kept on one line with its unit, and m × n on one line."""
    value = re.sub(r"(?<=\d) (?=(?:%|ms|s|min|h|MB|GB|kB|B)\b|%)", "\u00a0", escape(value))
    return Html(re.sub(r"(?<=\w) × (?=\w)", "\u00a0×\u00a0", value))


def formula(value: str) -> Html:
    """Text with formulas as a recipe writes them: Σ_ij has its index below, `--name` is code."""
    parts = re.split(r"`([^`]+)`", value)
    marked = [
        f"<code>{escape(part)}</code>" if index % 2 else _INDEX.sub(r"\1<sub>\2</sub>", text(part))
        for index, part in enumerate(parts)
    ]
    return Html("".join(marked))


def el(name: str, /, *children: Child, **attributes: str) -> Html:
    """An element. `class_`, `data_label` become `class`, `data-label`; empty ones are left out."""
    pairs = (
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    opening = f"<{name}{''.join(pairs)}>"
    return Html(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Children one after the other; None and empty text leave nothing behind."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(text(child))
        elif child is not None:
            parts.append(join(*child))
    return Html("".join(parts))


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    class_: str = "",
    emphasis: int | None = None,
) -> Html:
    """A table whose first column names the row; `emphasis` is the index of a row to set off.

    Cells carry their column's name, so that a narrow screen can show a row as a list.
    """
    head = el("tr", [el("th", h, scope="col") for h in heads])
    body = []
    for index, (first, *rest) in enumerate(rows):
        cells: list[Child] = [el("th", first, scope="row")]
        cells += [
            el("td", c, data_label=h, class_="none" if c == "–" else "")
            for h, c in zip(heads[1:], rest, strict=True)
        ]
        body.append(el("tr", cells, class_="set-off" if index == emphasis else ""))
    inner = el("table", el("thead", head), el("tbody", body), class_=class_)
    return el("div", inner, class_="scroll")


def details(summary: str, *children: Child) -> Html:
    """A part that is closed until it is asked for."""
    return el("details", el("summary", summary), *children)


def responsive(wide: str, narrow: str) -> Html:
    """One picture drawn twice, of which the style sheet shows the one that fits the screen."""
    return join(
        el("div", Html(wide), class_="wide"),
        el("div", Html(narrow), class_="narrow"),
    )


def figure(caption: Child, *pictures: str) -> Html:
    """Pictures side by side where there is room, one under the other where there is not."""
    cards = [el("div", Html(picture), class_="card") for picture in pictures]
    wide = "one" if len(pictures) == 1 else "many"
    return el("figure", el("div", cards, class_=wide), el("figcaption", caption))
