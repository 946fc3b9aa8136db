"""Cells of the derivative table: one derivative of one loss at one matrix, and whether it is right.

A cell passes if it is within 2e-6 of the exact value (`oracle`), relative to the largest of three
directions, absolute where the exact value is zero. In single precision that is 17 eps: asked of the
Hermitian half, whose eigenpairs are refined, and 1e-3 of the other.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from . import eigenlibraries, eigenoracle, eigenproblems, libraries, losses, oracle, problems
from .libraries import MODES, Outcome
from .losses import Loss
from .oracle import mp


class Half(NamedTuple):
    """Half of the table: what is tried on what, and what is asked.

    Attributes:
        problems: the kinds of matrix.
        losses: the losses.
        defined: (problem, loss, order) -> whether there is a cell.
        derivatives: problem -> the exact ones, by name of the loss.
        libraries: name -> (problem, loss, order) -> outcomes by mode.
        bars: the error at most, by the name of the dtype.
    """

    problems: tuple
    losses: tuple[Loss, ...]
    defined: Callable[[Any, Loss, int], bool]
    derivatives: Callable[[Any], dict]
    libraries: dict[str, Callable[[Any, Loss, int], dict[str, Outcome]]]
    bars: dict[str, float]


DOUBLE = {"float64": 2e-6, "complex128": 2e-6}
SVD = Half(
    problems.PROBLEMS,
    losses.LOSSES,
    losses.defined,
    oracle.derivatives,
    libraries.LIBRARIES,
    {**DOUBLE, "float32": 1e-3},
)
HERMITIAN = Half(
    eigenproblems.PROBLEMS,
    eigenproblems.LOSSES,
    eigenproblems.defined,
    eigenoracle.derivatives,
    eigenlibraries.LIBRARIES,
    {**DOUBLE, "float32": 2e-6},
)


class Cell(NamedTuple):
    """One derivative of one library.

    Attributes:
        error: relative to the exact value (absolute where that is zero); nan if any number is not
            finite; None if the library raised an exception.
        passed: whether the error is within the bar.
        representable: whether the exact value is zero or a normal number of the dtype.
    """

    library: str
    problem: str
    loss: str
    order: int
    mode: str
    error: float | None
    passed: bool
    representable: bool

    @property
    def outcome(self) -> float | str:
        """The error in two digits, or the word for what came instead."""
        if not self.representable:
            return "not representable"
        if self.error is None:
            return "raises"
        return "nan" if np.isnan(self.error) else float(f"{self.error:.1e}")


def exact(problem: Any, loss: Loss, order: int, mode: str, half: Half = SVD) -> list:
    """Return the exact values of the cell along each direction, 50 digits.

    A gradient, or a Hessian times a direction, is paired with directions of size one; the oracle's
    are of the size of the matrix.
    """
    values = half.derivatives(problem)[loss.name][order - 1]
    return list(values) if mode == "jvp" else [x / problem.unit for x in values]


def judge(
    library: str, problem: Any, loss: Loss, order: int, mode: str, got, wanted, half: Half = SVD
) -> Cell:
    """Compare an outcome with the exact values."""
    size = max(abs(x) for x in wanted)
    info = np.finfo(problem.a.dtype)
    representable = size == 0 or float(info.tiny) <= size <= float(info.max)
    if isinstance(got, Exception):
        error = None
    elif not np.all(np.isfinite(got)):
        error = float("nan")
    else:
        distance = max(abs(mp.mpf(float(x)) - y) for x, y in zip(got, wanted, strict=True))
        error = float(distance / size if size else distance)
    passed = error is not None and error <= half.bars[problem.a.dtype.name]
    return Cell(library, problem.name, loss.name, order, mode, error, passed, representable)


def evaluate(compute: Callable, problem: Any, loss: Loss, order: int) -> dict[str, Outcome]:
    """Return what a library makes of the derivatives of one order; an exception is an outcome."""
    try:
        return compute(problem, loss, order)
    except (NotImplementedError, RuntimeError) as error:
        return dict.fromkeys(MODES[order], error)


def cells(library: str, problem: Any, order: int, half: Half = SVD) -> Iterator[Cell]:
    """Return the cells of one library, kind of matrix and order."""
    for loss in half.losses:
        if half.defined(problem, loss, order):
            outcomes = evaluate(half.libraries[library], problem, loss, order)
            for mode, got in outcomes.items():
                wanted = exact(problem, loss, order, mode, half)
                yield judge(library, problem, loss, order, mode, got, wanted, half)
