"""Where a value of a metric stands on its axis, and what the axis then says."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lpaf_jax.report.measures import Measure


def drawn(measure: Measure, value: float) -> float:
    """Where a value stands: shares by their percents, amounts by their logarithms."""
    if measure.less:
        return math.log10(value)
    return value if measure.correlation else 100 * value


def amounts(axes: Any, measure: Measure) -> None:
    """Write amounts where their logarithms stand, whole multiples of something."""
    from matplotlib.ticker import MaxNLocator

    class Places(MaxNLocator):
        def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
            decades = np.arange(np.floor(vmin), np.ceil(vmax) + 1)
            if vmax - vmin > 3:
                return list(decades)
            if vmax - vmin > 0.5:
                parts = [1, 2, 5] if vmax - vmin > 1.2 else [1, 1.5, 2, 3, 5, 7]
                return list(np.add.outer(decades, np.log10(parts)).ravel())
            amounts = np.asarray(super().tick_values(10**vmin, 10**vmax))
            return list(np.log10(amounts[amounts > 0]))

    if measure.less:
        axes.yaxis.set_major_locator(Places(nbins=5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(
            lambda place, _: f"{10**place:,.0f}" if place > 2 else f"{10**place:.3g}"
        )
