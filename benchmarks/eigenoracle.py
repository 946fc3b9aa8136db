"""The exact derivatives of the Hermitian half: differences in 50-digit arithmetic, as `oracle`.

Values through mpmath's own eigendecomposition; no code, loss or function is shared with what is
judged.
"""

import functools

import numpy as np

from .eigenproblems import CUT, LOSSES, PAIRS, N, Problem, defined
from .losses import Loss
from .oracle import FIRST_STEP, SECOND_STEP, Derivatives, matrix, mp

# f(w, unit), scaled so that Q f(w) Q^H is of size one.
MAPS = {
    "w^3": lambda w, u: (w / u) ** 3,
    "w/(1+w^2)": lambda w, u: w * u / (u**2 + w**2),
    "exp": lambda w, u: mp.exp(w / u),
    "1/w": lambda w, u: u / w,
    "abs": lambda w, u: abs(w) / u,
    "sqrt": lambda w, u: mp.sqrt(w / u),
    "log": lambda w, u: mp.log(w / u),
    "w^-1/4": lambda w, u: 1 / mp.root(w / u, 4),
    "w^-1/2": lambda w, u: 1 / mp.sqrt(w / u),
    "step": lambda w, u: mp.mpf(int(w / u > CUT)),
}
SUMS = {
    "w^2": lambda w, u: w**2,
    "w^4": lambda w, u: w**4,
    "exp": lambda w, u: mp.exp(w / u),
    "log": lambda w, u: mp.log(w / u),
    "w log w": lambda w, u: w / u * mp.log(w / u),
    "positive part": lambda w, u: max(w, mp.mpf(0)),
}
SUM_DEGREES = {"w^2": 2, "w^4": 4, "exp": 0, "log": 0, "w log w": 0, "positive part": 1}


class Evaluator:
    """All losses of one kind of matrix, at matrices of 50 digits."""

    def __init__(self, problem: Problem):
        self.unit = mp.mpf(2) ** problem.exponent
        self.eigh = mp.eighe if np.iscomplexobj(problem.a) else mp.eigsy
        self.weights = [matrix(x) for x in problem.weights]
        self.log_other = self._map("log", *self.eigh(matrix(problem.other)))

    def _map(self, scalar, w, Q):
        return Q * mp.diag([MAPS[scalar](x, self.unit) for x in w]) * Q.H

    def form(self, Z):
        total = mp.mpf(0)
        for g, w, z in zip(*self.weights, Z, strict=True):
            total += mp.re(mp.conj(g) * z) + w * abs(z) ** 2 / 2
        return total

    def values(self, A, losses: list[Loss]) -> list:
        """Return the loss values at A, all from one eigendecomposition."""
        w, Q = self.eigh(A)
        return [self._value(loss, list(w), Q) for loss in losses]

    def _value(self, loss: Loss, w, Q):
        if loss.quantity == "sum":
            return mp.fsum(SUMS[loss.scalar](x, self.unit) for x in w)
        if loss.quantity == "distance":
            return mp.norm(self._map("log", w, Q) - self.log_other, 2)
        if loss.scalar is not None:
            return self.form(self._map(loss.scalar, w, Q))
        rank = (lambda i: -abs(w[i])) if loss.quantity == "large" else (lambda i: -w[i])
        order = sorted(range(N), key=rank)
        kept = order[-PAIRS:] if loss.quantity == "bottom" else order[:PAIRS]
        of_part = loss.quantity == "part"
        values = [w[i] / self.unit if of_part else mp.mpf(1) for i in range(N)]
        return self.form(Q * mp.diag([values[i] * (i in kept) for i in range(N)]) * Q.H)


@functools.cache
def derivatives(problem: Problem) -> dict[str, Derivatives]:
    """Return the derivatives of every loss that has one at the matrix, by name."""
    evaluate = Evaluator(problem)
    losses = [loss for loss in LOSSES if defined(problem, loss, 1)]
    A = matrix(problem.a)
    E = [matrix(direction) * evaluate.unit for direction in problem.directions]
    h, k = mp.mpf(FIRST_STEP), mp.mpf(SECOND_STEP)

    def difference(terms, divisor):
        rows = [[c * x for x in evaluate.values(A + D, losses)] for c, D in terms]
        return [mp.fsum(column) / divisor for column in zip(*rows, strict=True)]

    firsts = [difference([(1, h * D), (-1, -h * D)], 2 * h) for D in E]
    seconds = []
    for F in E:
        plus, minus = k * (E[0] + F), k * (E[0] - F)
        terms = [(1, plus), (-1, minus), (-1, -minus), (1, -plus)]
        seconds.append(difference(terms, 4 * k**2))
    result = {}
    for i, loss in enumerate(losses):
        # What differences leave of a derivative that is zero.
        degree = SUM_DEGREES[loss.scalar] if loss.quantity == "sum" else 0
        rounding = mp.mpf("1e-18") * evaluate.unit**degree
        rows = [
            [mp.mpf(0) if abs(row[i]) < rounding else row[i] for row in found]
            for found in (firsts, seconds)
        ]
        result[loss.name] = Derivatives(rows[0], rows[1] if defined(problem, loss, 2) else None)
    return result
