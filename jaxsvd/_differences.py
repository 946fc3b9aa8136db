"""Derivatives by extrapolated finite differences, with an estimate of their error."""

from collections.abc import Callable

import numpy as np


def extrapolated_difference(g: Callable[[float], np.ndarray], h: float) -> tuple[np.ndarray, float]:
    """Return the derivative of g at 0 by extrapolated central differences, and its error.

    Steps h, h/3, ... down to 7e-8 h, so that gaps of 1e-6 are resolved too; of Neville's tableau
    the entry that differs least from its neighbours.
    """
    best, error, previous = np.asarray(np.nan), np.inf, []
    for i in range(16):
        step = h / 3**i
        row = [(g(step) - g(-step)) / (2 * step)]
        for j, above in enumerate(previous):
            row.append(row[j] + (row[j] - above) / (9 ** (j + 1) - 1))
            change = max(np.abs(row[j + 1] - row[j]).max(), np.abs(row[j + 1] - above).max())
            if change < error:
                best, error = row[j + 1], float(change)
        previous = row
    return best, error


def correct_digits(computed: np.ndarray, exact: np.ndarray, uncertainty: float, full: float):
    """Return correct digits, at most as many as the reference has, or None if it has none."""
    scale = np.abs(exact).max()
    if not np.isfinite(computed).all():
        return 0.0
    if not np.isfinite(uncertainty) or (scale > 0 and uncertainty > 0.1 * scale):
        return None
    error = max(float(np.abs(computed - exact).max()), uncertainty)
    if error == 0 or scale == 0:
        return full
    return float(np.clip(-np.log10(error / scale), 0, full))
