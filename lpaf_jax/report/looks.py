"""How a method looks in every figure: by its name, so that pages and pictures agree."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple
from zlib import crc32

from lpaf_jax.report.svg import AMBER, BLUE, GREEN, INK, ORANGE, PINK, SKY


class Look(NamedTuple):
    """Keywords of `Axes.plot`, by `_asdict()`."""

    color: str
    marker: str
    linestyle: str = "solid"


# What is often compared differs in colour; relatives share one and differ in marker and line.
_KNOWN = {
    "lpaf-plus": Look(BLUE, "o"),
    "lpaf": Look(ORANGE, "D"),
    "lpaf-without-step-1": Look(AMBER, "s", "dashed"),
    "lpaf-without-step-2": Look(GREEN, "P", "dotted"),
    "lpaf-without-step-3": Look(PINK, "X", "dashdot"),
    "svd-ft": Look(INK, "^"),
    "svd": Look(INK, "v", "dashed"),
    "kfac-svd": Look(GREEN, "s"),
    "sparsegpt-svd": Look(GREEN, "X", "dashed"),
    "drone": Look(SKY, "P"),
    "awsvd": Look(SKY, "^", "dashed"),
    "afm": Look(SKY, "D", "dotted"),
    "aa-svd": Look(SKY, "X", "dashdot"),
    "fwsvd": Look(AMBER, "v"),
    "lora-svd": Look(AMBER, "P", "dotted"),
    "tfwsvd": Look(PINK, "*"),
    "channels": Look(PINK, "D"),
    "width-pruning": Look(PINK, "s", "dashed"),
    "lorap": Look(ORANGE, "s", "dashed"),
    "albert": Look(BLUE, "^", "dashed"),
    "tensorgpt": Look(BLUE, "D", "dotted"),
    "kngpt2": Look(BLUE, "s", "dashdot"),
    "shapeshifter": Look(ORANGE, "P", "dotted"),
}
COLOURS = (BLUE, ORANGE, GREEN, AMBER, PINK, SKY, INK)
MARKERS = "osD^vP*X"
STYLES = ("solid", "dashed", "dotted", "dashdot")
_FREE = [
    Look(colour, marker, STYLES[index % len(STYLES)])
    for (index, marker), colour in product(enumerate(MARKERS), COLOURS)
]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """The look of each method of a figure, no two alike up to 56 of them.

    A name that is not known starts from its checksum, so that it mostly looks the same in every
    figure; it gives way to those before it, and to all that are known.
    """
    names = list(names)
    found = {name: _KNOWN[name] for name in names if name in _KNOWN}
    for name in names:
        if name in found:
            continue
        start = crc32(name.encode()) % len(_FREE)
        turned = _FREE[start:] + _FREE[:start]
        colours = {look.color for look in found.values()}
        pairs = {look[:2] for look in found.values()}
        other = [look for look in turned if look.color not in colours]
        other += [look for look in turned if look[:2] not in pairs]
        found[name] = (other or turned)[0]
    return {name: found[name] for name in names}
