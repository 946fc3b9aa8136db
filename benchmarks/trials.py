"""What a trial of `benchmarks.trust` is made of: cases with a ratio each, judged into one row.

A ratio is an error in the units of what is allowed to be lost (usually eps times a size), so that
one bar fits all cases of a row. NaN is a failure, and so is an exception. Where something cannot be
right, the row says why: a failure with a reason is printed, one without makes the run fail.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Failure(NamedTuple):
    """A case beyond the bar: its name, what was found, and why that is so ("" is not known)."""

    case: str
    found: str
    reason: str = ""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        trial: what was tried.
        cases: how many cases.
        worst: the largest ratio of the cases that did not fail, None where ratios mean nothing.
        bar: what it must stay below.
        failures: the cases beyond it.
        note: what a ratio is.
    """

    trial: str
    cases: int
    worst: float | None
    bar: float | None
    failures: tuple[Failure, ...] = ()
    note: str = ""


Case = tuple[str, float | Callable[[], float]]


def evaluated(cases: Iterable[Case]) -> Iterator[tuple[str, float | Exception]]:
    """Yield (name, ratio); a ratio given as a function is computed, its exception an outcome."""
    for name, ratio in cases:
        if not callable(ratio):
            yield name, ratio
            continue
        try:
            yield name, ratio()
        except Exception as error:
            yield name, error


def judge(
    trial: str,
    cases: Iterable[Case],
    bar: float,
    *,
    reasons: Mapping[str, str] | None = None,
    note: str = "",
) -> Row:
    """Return the row of a trial whose cases pass below a bar.

    Args:
        trial: what is tried.
        cases: (name, ratio), or (name, function that returns the ratio).
        bar: a ratio of this size fails, and so does NaN.
        reasons: part of a case's name -> why it fails.
        note: what a ratio is.
    """
    count, worst, failures = 0, 0.0, []
    for name, ratio in evaluated(cases):
        count += 1
        if isinstance(ratio, Exception):
            found = f"{type(ratio).__name__}: {str(ratio).splitlines()[0][:100]}"
        elif ratio < bar:
            worst = max(worst, float(ratio))
            continue
        else:
            found = f"{ratio:.2g}"
        why = next((why for part, why in (reasons or {}).items() if part in name), "")
        failures.append(Failure(name, found, why))
    return Row(trial, count, worst, bar, tuple(failures), note)


def whether(holds: object) -> float:
    """Return the ratio of a case that holds or does not: 0, or infinity."""
    return 0.0 if np.all(np.asarray(holds)) else np.inf
