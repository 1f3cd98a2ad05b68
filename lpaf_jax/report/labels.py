"""Labels inside a figure, put where they cross nothing."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lpaf_jax.report.svg import MUTED

_SIZE = 9.5


class Spot(NamedTuple):
    """A place for a label: a point of the axes (data), an offset in points, and alignment."""

    x: float
    y: float
    dx: float = 0
    dy: float = 0
    ha: str = "left"
    va: str = "center"


class Room:
    """What lies in an axes, in points, once its limits and everything but the labels are set."""

    def __init__(self, axes: Any) -> None:
        axes.figure.draw_without_rendering()  # before, the layout has not settled
        self._axes = axes
        self._taken: list[np.ndarray] = []

    def line(self, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray) -> None:
        """A curve through these points (data), to be kept clear of."""
        corners = self._points(np.column_stack([xs, ys]))
        steps = np.linspace(0, 1, 60)[:, None]
        for start, end in pairwise(corners):
            self._taken.append(start + steps * (end - start))
        self._taken.append(corners)

    def clearest(self, text: str, spots: Sequence[Spot], size: float = _SIZE) -> Spot:
        """The first of the spots where the label meets the least."""
        taken = np.concatenate([*self._taken, np.empty((0, 2))])
        frame = self._axes.get_window_extent().get_points() * self._scale

        def met(spot: Spot) -> float:
            low, high = self._box(text, spot, size)
            outside = np.maximum(frame[0] - low, 0).sum() + np.maximum(high - frame[1], 0).sum()
            return float(((taken > low) & (taken < high)).all(axis=1).sum() + 20 * (outside > 1))

        return min(spots, key=met)

    def label(self, text: str, spots: Sequence[Spot], size: float = _SIZE, **look: Any) -> None:
        """Write the label in the clearest of the spots; later labels keep clear of it."""
        spot = self.clearest(text, spots, size)
        written = self._axes.annotate(
            text,
            spot[:2],
            xytext=spot[2:4],
            textcoords="offset points",
            ha=spot.ha,
            va=spot.va,
            fontsize=size,
            # What it must cross all the same goes on behind it.
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
            **{"color": MUTED, **look},
        )
        written.set_in_layout(False)
        low, high = self._box(text, spot, size)
        self._taken.append(
            np.stack(np.meshgrid(*np.linspace(low, high, 12).T), axis=-1).reshape(-1, 2)
        )

    def height_of(self, text: str, size: float = _SIZE) -> float:
        """How high a label is, in data; of a logarithmic axis it says nothing."""
        low, high = self._axes.get_ylim()
        extent = self._axes.get_window_extent().height * self._scale
        return float((high - low) * 1.3 * size * len(text.split("\n")) / extent)

    @property
    def _scale(self) -> float:
        return 72 / float(self._axes.figure.dpi)

    def _points(self, data: np.ndarray) -> np.ndarray:
        return np.asarray(self._axes.transData.transform(data)) * self._scale

    def _box(self, text: str, spot: Spot, size: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower left and upper right, by the mean width of a letter."""
        rows = text.split("\n")
        extent = size * np.array([0.6 * max(map(len, rows)), 1.3 * len(rows)])
        share = np.array(
            [
                {"left": 0, "center": 0.5, "right": 1}[spot.ha],
                {"bottom": 0, "center": 0.5, "top": 1}[spot.va],
            ]
        )
        offset = np.array([spot.dx, spot.dy])
        low = self._points(np.array([spot.x, spot.y])) + offset - share * extent
        return low, low + extent
