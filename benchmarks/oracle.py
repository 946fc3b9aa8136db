"""What the derivatives are: differences of the losses in 50-digit arithmetic.

It shares no code with any rule, and no loss or function with `benchmarks.losses`: values through
mpmath's own SVD, derivatives as central differences along straight lines. Their error is the step
squared, 1e-24 or less, and what they lose of 50 digits leaves 24 or more: at ties, at zero singular
values and at extreme scales as anywhere else. A matrix counts as the numbers it is stored as, and
directions have the size of the matrix: its unit times a direction of size one. All losses of one
kind of matrix take half a second.
"""

import functools
from typing import NamedTuple

import mpmath
import numpy as np

from .losses import CUT_RANK, LOSSES, Loss, defined
from .problems import CUT, NULL, Problem

DIGITS = 50
FIRST_STEP = "1e-20"  # below the 1e-17 that stand for zero in a stored matrix
SECOND_STEP = "1e-12"

mp = mpmath.mp.clone()
mp.dps = DIGITS

# f(s, unit), scaled so that U f(S) V^H is of size one.
MAPS = {
    "s": lambda s, u: s / u,
    "s^3": lambda s, u: (s / u) ** 3,
    "s/(1+s^2)": lambda s, u: s * u / (u**2 + s**2),
    "s exp(-s^2)": lambda s, u: s / u * mp.exp(-((s / u) ** 2)),
    "s exp(-s)": lambda s, u: s / u * mp.exp(-s / u),
    "one": lambda s, u: mp.mpf(1),
    "step at the cut": lambda s, u: mp.mpf(int(s / u > CUT)),
    "step at zero": lambda s, u: mp.mpf(int(s / u > NULL)),
    "1/s": lambda s, u: u / s if s / u > NULL else mp.mpf(0),
}
SUMS = {
    "s^2": lambda s, u: s**2,
    "s^4": lambda s, u: s**4,
    "s": lambda s, u: s,
    "log(1+s^2)": lambda s, u: mp.log(1 + (s / u) ** 2),
}
SUM_DEGREES = {"s^2": 2, "s^4": 4, "s": 1, "log(1+s^2)": 0}


def matrix(x: np.ndarray):
    """Return an array as a matrix of the 50-digit numbers that it holds exactly."""
    return mp.matrix([[mp.mpmathify(entry) for entry in row.tolist()] for row in x])


class Evaluator:
    """All losses of one kind of matrix, at matrices of 50 digits."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.unit = mp.mpf(2) ** problem.exponent
        self.is_complex = np.iscomplexobj(problem.a)
        self.weights = {name: (matrix(G), matrix(W)) for name, (G, W) in problem.weights.items()}

    def form(self, Z, name: str):
        G, W = self.weights[name]
        total = mp.mpf(0)
        for g, w, z in zip(G, W, Z, strict=True):
            total += mp.re(mp.conj(g) * z) + w * abs(z) ** 2 / 2
        return total

    def values(self, A, losses: list[Loss]) -> list:
        """Return the loss values at A, all from one SVD."""
        U, S, Vh = (mp.svd_c if self.is_complex else mp.svd_r)(A)
        return [self._value(loss, U, S, Vh) for loss in losses]

    def _map(self, f, U, S, Vh):
        """Return the sum of f(s_i) u_i v_i^H."""
        return U * mp.diag([f(s, self.unit) for s in S]) * Vh

    def _value(self, loss: Loss, U, S, Vh):
        m, n = self.problem.a.shape
        left, right = U * 1, Vh.H

        def projector(X, columns):
            X = X[:, columns]
            return X * X.H

        match loss.quantity:
            case "left":
                return self.form(projector(left, slice(0, CUT_RANK)), "left")
            case "right":
                return self.form(projector(right, slice(0, CUT_RANK)), "right")
            case "both":
                return self.form(projector(left, slice(0, CUT_RANK)), "left") + self.form(
                    projector(right, slice(0, CUT_RANK)), "right"
                )
            case "null" | "map null":
                range_ = projector(left if m >= n else right, slice(0, self.problem.rank))
                return self.form(mp.eye(max(m, n)) - range_, "null")
            case "low rank":
                Y = self._map(lambda s, u: s / u if s >= S[CUT_RANK - 1] else mp.mpf(0), U, S, Vh)
                return self.form(Y, "product")
            case "map":
                return self.form(self._map(MAPS[loss.scalar], U, S, Vh), "product")
            case "map left":
                Y = self._map(MAPS[loss.scalar], U, S, Vh)
                return self.form(Y * Y.H, "left")
            case "sum":
                return mp.fsum(SUMS[loss.scalar](s, self.unit) for s in S)
        raise ValueError(loss.quantity)


class Derivatives(NamedTuple):
    """Derivatives of one loss along the directions E_j; None where it has none.

    Attributes:
        first: D L[E_j].
        second: D^2 L[E_0, E_j].
    """

    first: list | None
    second: list | None


@functools.cache
def derivatives(problem: Problem) -> dict[str, Derivatives]:
    """Return the derivatives of every loss that has one at the matrix, by name."""
    evaluate = Evaluator(problem)
    losses = [loss for loss in LOSSES if defined(problem, loss, 1)]
    A = matrix(problem.a)
    E = [matrix(direction) * evaluate.unit for direction in problem.directions]
    h, k = mp.mpf(FIRST_STEP), mp.mpf(SECOND_STEP)

    def difference(terms, divisor):
        """Return sum c L(A + D) / divisor for each loss, terms = [(c, D), ...]."""
        columns = [[c * x for x in evaluate.values(A + D, losses)] for c, D in terms]
        return [mp.fsum(column) / divisor for column in zip(*columns, strict=True)]

    def first(D):
        return difference([(1, h * D), (-1, -h * D)], 2 * h)

    def second(D, F):
        plus, minus = k * (D + F), k * (D - F)
        return difference([(1, plus), (-1, minus), (-1, -minus), (1, -plus)], 4 * k**2)

    firsts, seconds = [first(D) for D in E], [second(E[0], D) for D in E]
    result = {}
    for i, loss in enumerate(losses):
        # What differences leave of a derivative that is zero.
        degree = SUM_DEGREES[loss.scalar] if loss.quantity == "sum" else 0
        rounding = mp.mpf("1e-18") * evaluate.unit**degree

        def clean(rows, i=i, rounding=rounding):
            return [mp.mpf(0) if abs(row[i]) < rounding else row[i] for row in rows]

        has_second = defined(problem, loss, 2)
        result[loss.name] = Derivatives(clean(firsts), clean(seconds) if has_second else None)
    return result
