"""The Hermitian half of the derivative table: kinds of matrix and gauge-free losses.

As `problems` and `losses` for the other half: 5 x 5 matrices Q diag(w) Q^H times a power of two,
exactly Hermitian as they are stored; directions and weights are multiples of 1/128. A loss is made
of a quantity Z, a projector or a matrix function in units, or of the eigenvalues alone:

    Re <G, Z> + 1/2 sum W |Z|^2,        sum f(w),        |log A - log B|_F
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .losses import Loss, Scalar, adjoint, form, weigh_diagonal
from .problems import DIRECTIONS, _exact_factor, _grid, _random_factor

N = 5
PAIRS = 2  # of the subspaces
CUT = 2.2  # in units: what the step function cuts at
GAP = 0.1  # in units: an end is cut off where the gap is wider


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One kind of Hermitian matrix.

    Attributes:
        name: what stands in the table.
        a: the matrix as it is stored, (n, n).
        spectrum: its eigenvalues in units, descending, exact before `a` was rounded.
        exponent: the unit is 2**exponent.
        tags: what the matrix is an example of.
    """

    name: str
    a: np.ndarray
    spectrum: np.ndarray
    exponent: int
    tags: frozenset[str]

    @property
    def unit(self) -> float:
        return 2.0**self.exponent

    @property
    def positive(self) -> bool:
        return bool(self.spectrum[-1] > 0)

    @property
    def nonsingular(self) -> bool:
        return bool(np.all(self.spectrum != 0))

    @property
    def has_top(self) -> bool:
        """Whether the two largest eigenvalues are those above the cut."""
        return bool(self.spectrum[PAIRS - 1] > CUT > self.spectrum[PAIRS])

    @property
    def has_bottom(self) -> bool:
        """Whether the two smallest are apart from the rest."""
        return bool(self.spectrum[-PAIRS - 1] - self.spectrum[-PAIRS] > GAP)

    @property
    def has_large(self) -> bool:
        """Whether the two largest in magnitude are apart from the rest."""
        size = np.sort(np.abs(self.spectrum))[::-1]
        return bool(size[PAIRS - 1] - size[PAIRS] > GAP)

    @property
    def directions(self) -> np.ndarray:
        """Random Hermitian directions of size one, (DIRECTIONS, n, n)."""
        E = _grid((DIRECTIONS, N, N), self.a.dtype, seed=1)
        return (E + adjoint(E)) / E.real.dtype.type(2)

    @property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Linear and quadratic weights."""
        real = np.finfo(self.a.dtype).dtype
        quadratic = np.abs(_grid((N, N), real, seed=12)) + real.type(0.5)
        return _grid((N, N), self.a.dtype, seed=2), quadratic

    @property
    def other(self) -> np.ndarray:
        """A positive definite matrix of the size of a, with ties."""
        B = _exact_factor(N, N, self.a.dtype, 2)
        values = np.array([2.0, 2.0, 1.0, 1.0, 0.5], self.a.dtype)
        return (B * values) @ adjoint(B) * self.a.real.dtype.type(self.unit)


def _problem(name, spectrum, dtype=np.float64, *, factor="random", exponent=0, tags=()) -> Problem:
    """Multiply the factors out in double precision, then round to the dtype."""
    w = np.sort(np.array(spectrum, np.float64))[::-1]
    work = np.result_type(dtype, np.float64)
    if factor == "random":
        Q = _random_factor(N, N, work, 21)
    else:
        Q = _exact_factor(N, N, work, 1) if factor == "exact" else np.eye(N, dtype=work)
    a = (Q * w) @ adjoint(Q)
    a = ((a + adjoint(a)) / 2).astype(dtype) * np.finfo(dtype).dtype.type(2.0**exponent)
    return Problem(name, a, w, exponent, frozenset({*tags, a.dtype.name}))


POSITIVE = (3.0, 2.5, 1.75, 1.25, 0.6)
INDEFINITE = (3.0, 2.5, 0.8, -1.2, -2.0)
MIRRORED = (3.0, 2.5, 1.0, -1.0, -3.0)
TIED = (3.0, 3.0, 2.0, 2.0, 1.0)
TRIPLE = (3.0, 3.0, 2.0, 2.0, 2.0)
TIED_ENDS = (3.0, 3.0, -1.0, -2.0, -2.0)
DEFICIENT = (3.0, 2.5, 1.75, 0.0, 0.0)


def _split(gap: float) -> tuple[float, ...]:
    """Return TRIPLE with its ties split by a relative gap."""
    return (3.0, 3.0 * (1 - gap), 2.0, 2.0 * (1 - gap), 2.0 * (1 - 2 * gap))


def _problems_of(dtype, prefix: str, gap: str, scales: dict[str, int]) -> tuple[Problem, ...]:
    """Return the kinds that are tried in single and in double precision."""

    def make(name, spectrum, **options):
        return _problem(prefix + name, spectrum, dtype, **options)

    return (
        make("positive definite", POSITIVE),
        make("indefinite", INDEFINITE),
        make("pairs +w, -w", MIRRORED),
        make("exact ties", TIED, factor="exact"),
        make("exact ties at both ends", TIED_ENDS, factor="exact"),
        make("ties split by rounding", TRIPLE),
        make(f"gaps of {gap}", _split(float(gap))),
        make("clusters of 1e-3", _split(1e-3)),
        make("identity", [1.0] * N, factor="identity"),
        make("rank-deficient", DEFICIENT),
        make("zero", [0.0] * N, factor="identity"),
        *(make(f"scaled by {x}", POSITIVE, exponent=e, tags={"scaled"}) for x, e in scales.items()),
    )


PROBLEMS = (
    *_problems_of(np.float64, "", "1e-13", {"1e160": 532, "1e-160": -531}),
    _problem("negative definite", [-w for w in POSITIVE]),
    _problem("gaps of 1e-6", _split(1e-6)),
    _problem("spread over six decades", (3.0, 2.5, 1e-3, 1e-3 * (1 - 1e-4), 3e-6)),
    _problem("complex positive definite", POSITIVE, complex),
    _problem("complex indefinite", INDEFINITE, complex),
    _problem("exact ties, complex", TIED, complex, factor="exact"),
    _problem("exact ties at both ends, complex", TIED_ENDS, complex, factor="exact"),
    _problem("ties split by rounding, complex", TRIPLE, complex),
    _problem("rank-deficient, complex", DEFICIENT, complex),
    *_problems_of(np.float32, "float32: ", "1e-6", {"1e20": 67, "1e-20": -66}),
)

BY_NAME = {problem.name: problem for problem in PROBLEMS}


def _reciprocal(xp, w, unit):
    # In units, and behind a choice: XLA would write 1/(w/unit)/unit as unit/(w unit).
    t = w / unit
    zero = t == 0
    return xp.where(zero, xp.zeros_like(t), 1 / xp.where(zero, xp.ones_like(t), t)) / unit


# For Q f(w) Q^H.
MAPS = {
    "w^3": Scalar(lambda xp, w, unit: w * (w / unit) ** 2, 1),
    "w/(1+w^2)": Scalar(lambda xp, w, unit: w / (1 + (w / unit) ** 2), 1),
    "exp": Scalar(lambda xp, w, unit: xp.exp(w / unit), 0),
    "1/w": Scalar(_reciprocal, -1),
    "abs": Scalar(lambda xp, w, unit: xp.abs(w), 1),
    "sqrt": Scalar(lambda xp, w, unit: xp.sqrt(w / unit), 0),
    "log": Scalar(lambda xp, w, unit: xp.log(w / unit), 0),
    "w^-1/4": Scalar(lambda xp, w, unit: (w / unit) ** -0.25, 0),
    "step": Scalar(
        lambda xp, w, unit: xp.where(w > CUT * unit, xp.ones_like(w), xp.zeros_like(w)), 0
    ),
    "w^-1/2": Scalar(lambda xp, w, unit: (w / unit) ** -0.5, 0),
}

# For sum f(w). Two of them without a unit: at extreme scales the sum itself is no number, and what
# is left of its derivatives must be right all the same.
SUMS = {
    "w^2": Scalar(lambda xp, w, unit: w * w, 2),
    "w^4": Scalar(lambda xp, w, unit: (w * w) * (w * w), 4),
    "exp": Scalar(lambda xp, w, unit: xp.exp(w / unit), 0),
    "log": Scalar(lambda xp, w, unit: xp.log(w / unit), 0),
    "w log w": Scalar(lambda xp, w, unit: w / unit * xp.log(w / unit), 0),
    "positive part": Scalar(lambda xp, w, unit: (w + xp.abs(w)) / 2, 1),
}

TOP, BOTTOM, LARGE = ("has_top",), ("has_bottom",), ("has_large",)
POSITIVE_ONLY, NONSINGULAR = ("positive",), ("nonsingular",)
RAW = "eigh, truncated_eigh"

LOSSES = (
    Loss("top subspace", RAW, "top", orders=(1,), needs=TOP),
    Loss("bottom subspace", RAW, "bottom", orders=(1,), needs=BOTTOM),
    Loss("top subspace, truncated", RAW, "truncated", orders=(1,), needs=TOP),
    Loss("top subspace by its core", "core_eigh", "top", needs=TOP),
    Loss("bottom subspace by its core", "core_eigh", "bottom", needs=BOTTOM),
    Loss("largest in magnitude by its core", "core_eigh", "large", needs=LARGE),
    Loss("part of rank two", "core_eigh", "part", needs=TOP),
    Loss("A^3", "hermitian_map", "map", "w^3"),
    Loss("A (I + A^2)^-1", "hermitian_map", "map", "w/(1+w^2)"),
    Loss("expm", "hermitian_map", "map", "exp"),
    Loss("inverse", "hermitian_map", "map", "1/w", needs=NONSINGULAR),
    Loss("absolute value", "hermitian_map", "map", "abs", needs=NONSINGULAR),
    Loss("sqrtm", "hermitian_map", "map", "sqrt", needs=POSITIVE_ONLY),
    Loss("logm", "hermitian_map", "map", "log", needs=POSITIVE_ONLY),
    Loss("inverse fourth root", "hermitian_map", "map", "w^-1/4", needs=POSITIVE_ONLY),
    Loss("top subspace by a step", "hermitian_map", "map", "step", needs=TOP),
    Loss("linalg.sqrtm", "linalg", "root", "sqrt", needs=POSITIVE_ONLY),
    Loss("linalg.whitening", "linalg", "whitening", "w^-1/2", needs=POSITIVE_ONLY),
    Loss("log-Euclidean distance", "linalg", "distance", needs=POSITIVE_ONLY),
    Loss("sum w^2", "hermitian_sum", "sum", "w^2"),
    Loss("sum w^4", "hermitian_sum", "sum", "w^4"),
    Loss("sum exp w", "hermitian_sum", "sum", "exp"),
    Loss("log det", "hermitian_sum", "sum", "log", needs=POSITIVE_ONLY),
    Loss("sum w log w", "hermitian_sum", "sum", "w log w", needs=POSITIVE_ONLY),
    Loss("sum of positive parts", "hermitian_sum", "sum", "positive part", needs=NONSINGULAR),
)


def defined(problem: Problem, loss: Loss, order: int) -> bool:
    """Say whether the loss has a derivative of this order at the matrix; else there is no cell."""
    return order in loss.orders and all(getattr(problem, need) for need in loss.needs)


def columns(xp: Any, quantity: str, w: Any) -> Any:
    """Return which of the eigenpairs, ascending, a subspace is made of."""
    if quantity == "large":
        return xp.argsort(xp.abs(w))[-PAIRS:]
    return slice(0, PAIRS) if quantity == "bottom" else slice(N - PAIRS, N)


def value(xp: Any, loss: Loss, problem: Problem, eigh: Callable, arrays: tuple) -> Any:
    """Return the loss written over eigenpairs; eigh(A) returns (w, Q), arrays is (A, G, W, B)."""
    A, G, W, B = arrays
    w, Q = eigh(A)
    unit = problem.unit
    if loss.quantity == "sum":
        return SUMS[loss.scalar].f(xp, w, unit).sum()
    if loss.quantity == "distance":
        b, R = eigh(B)
        difference = weigh_diagonal(Q, xp.log(w / unit)) @ adjoint(Q)
        difference = difference - weigh_diagonal(R, xp.log(b / unit)) @ adjoint(R)
        return xp.sqrt((difference * difference.conj()).real.sum())
    if loss.scalar is not None:
        scalar = MAPS[loss.scalar]
        Z = weigh_diagonal(Q, scalar.f(xp, w, unit) * unit**-scalar.degree) @ adjoint(Q)
        return form(Z, (G, W))
    kept = columns(xp, loss.quantity, w)
    Q = Q[:, kept]
    Z = weigh_diagonal(Q, w[kept] / unit) if loss.quantity == "part" else Q
    return form(Z @ adjoint(Q), (G, W))
