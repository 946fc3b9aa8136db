"""The kinds of matrix that derivatives are tried on: tagged data, factors known by construction.

Shapes are few (each new one compiles): 5 x 5, 6 x 4, 4 x 6. A matrix is U diag(s) V^H times a power
of two, its unit; every spectrum has its cut, where it has one, between the second and the third
value. Directions and weights are multiples of 1/64, so they are the same numbers in every dtype.
"""

import dataclasses
import functools

import numpy as np

SQUARE, TALL, WIDE = (5, 5), (6, 4), (4, 6)

CUT = 2.2  # in units: no spectrum has a value within 0.1 of it
NULL = 0.3  # in units: a value is above 0.5 or zero to rounding
DIRECTIONS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One kind of matrix.

    Attributes:
        name: what stands in the table.
        a: the matrix as it is stored, (m, n).
        spectrum: its singular values in units, exact before `a` was rounded.
        U: left singular vectors, exact before rounding, (m, k).
        Vh: right singular vectors, (k, n).
        exponent: the unit is 2**exponent.
        tags: what the matrix is an example of.
    """

    name: str
    a: np.ndarray
    spectrum: np.ndarray
    U: np.ndarray
    Vh: np.ndarray
    exponent: int
    tags: frozenset[str]

    @property
    def unit(self) -> float:
        return 2.0**self.exponent

    @property
    def rank(self) -> int:
        return int(np.sum(self.spectrum > NULL))

    @property
    def full_rank(self) -> bool:
        return self.rank == min(self.a.shape)

    @property
    def has_cut(self) -> bool:
        """Whether the two leading singular subspaces are separated from the rest."""
        return bool(self.spectrum[1] > CUT > self.spectrum[2])

    @property
    def has_null_space(self) -> bool:
        """Whether the range, on the longer side, is neither nothing nor everything."""
        return 0 < self.rank < max(self.a.shape)

    @property
    def directions(self) -> np.ndarray:
        """Random directions of size one, (DIRECTIONS, m, n)."""
        return _grid((DIRECTIONS, *self.a.shape), self.a.dtype, seed=1)

    @property
    def weights(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(G, W) for each quantity a loss may weigh: linear and quadratic weights."""
        m, n = self.a.shape
        shapes = {
            "product": (m, n),
            "left": (m, m),
            "right": (n, n),
            "null": (max(m, n), max(m, n)),
        }
        real = np.finfo(self.a.dtype).dtype
        return {
            name: (
                _grid(shape, self.a.dtype, seed=2 + i),
                np.abs(_grid(shape, real, seed=12 + i)) + real.type(0.5),
            )
            for i, (name, shape) in enumerate(shapes.items())
        }


@functools.cache
def _grid(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Random numbers of size one that every dtype holds exactly."""
    rng = np.random.default_rng([seed, *shape])

    def draw():
        return rng.integers(-128, 129, shape) / 64

    x = draw()
    return (x + 1j * draw() if np.issubdtype(dtype, np.complexfloating) else x).astype(dtype)


def _random_factor(rows: int, columns: int, dtype, seed: int) -> np.ndarray:
    """Orthonormal columns without structure."""
    return np.linalg.qr(_grid((rows, columns), np.dtype(dtype), seed))[0]


def _exact_factor(rows: int, columns: int, dtype, turn: int) -> np.ndarray:
    """Orthonormal columns whose entries are 0, +-1/2, +-1 (or times i): products are exact."""
    if np.issubdtype(dtype, np.complexfloating):
        block = 1j ** np.outer(range(4), range(4)) / 2  # a discrete Fourier transform
        block = np.round(2 * block) / 2
    else:
        block = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    Q = np.eye(rows, dtype=dtype)
    Q[:4, :4] = block
    Q = np.roll(Q, (turn, 1), axis=(0, 1))  # the columns of the block are not the leading ones
    return Q[:, :columns]


def _problem(
    name, shape, spectrum, dtype=np.float64, *, factors="random", exponent=0, tags=()
) -> Problem:
    """Multiply the factors out in double precision, then round to the dtype."""
    (m, n), k = shape, min(shape)
    s = np.array(spectrum, np.float64)
    work = np.result_type(dtype, np.float64)
    if factors == "random":
        U, V = _random_factor(m, k, work, 21), _random_factor(n, k, work, 22)
    elif factors == "exact":
        U, V = _exact_factor(m, k, work, 1), _exact_factor(n, k, work, 2)
    else:  # "identity"
        U, V = np.eye(m, k, dtype=work), np.eye(n, k, dtype=work)
    Vh = V.conj().T
    a = ((U * s) @ Vh).astype(dtype) * np.finfo(dtype).dtype.type(2.0**exponent)
    form = "square" if m == n else "tall" if m > n else "wide"
    return Problem(name, a, s, U, Vh, exponent, frozenset({*tags, form, a.dtype.name}))


GENERIC = (3.0, 2.5, 1.75, 1.25, 0.6)
TIED = (3.0, 3.0, 2.0, 2.0, 1.0)
TRIPLE = (3.0, 3.0, 2.0, 2.0, 2.0)
DEFICIENT = (3.0, 2.5, 1.75, 0.0, 0.0)


def _split(gap: float) -> tuple[float, ...]:
    """Return TRIPLE with its ties split by a relative gap."""
    return (3.0, 3.0 * (1 - gap), 2.0, 2.0 * (1 - gap), 2.0 * (1 - 2 * gap))


def _problems_of(dtype, prefix: str, gap: str, scales: dict[str, int]) -> tuple[Problem, ...]:
    """Return the kinds that are tried in single and in double precision, all 5 x 5."""

    def make(name, spectrum, tag, **options):
        return _problem(prefix + name, SQUARE, spectrum, dtype, tags={tag}, **options)

    return (
        make("exact ties", TIED, "ties", factors="exact"),
        make("ties split by rounding", TRIPLE, "ties"),
        make(f"gaps of {gap}", _split(float(gap)), "near ties"),
        make("identity", [1.0] * 5, "ties", factors="identity"),
        make("rank-deficient", DEFICIENT, "deficient"),
        *(make(f"scaled by {x}", GENERIC, "scaled", exponent=e) for x, e in scales.items()),
    )


PROBLEMS = (
    _problem("generic square", SQUARE, GENERIC),
    _problem("tall", TALL, GENERIC[:4]),
    _problem("wide", WIDE, GENERIC[:4]),
    _problem("complex square", SQUARE, GENERIC, complex),
    _problem("complex tall", TALL, GENERIC[:4], complex),
    *_problems_of(np.float64, "", "1e-13", {"1e160": 532, "1e-160": -531}),
    _problem("exact ties, tall", TALL, TIED[:4], factors="exact", tags={"ties"}),
    _problem("exact ties, wide", WIDE, TIED[:4], factors="exact", tags={"ties"}),
    _problem("exact ties, complex", SQUARE, TIED, complex, factors="exact", tags={"ties"}),
    _problem("exact ties, complex tall", TALL, TIED[:4], complex, factors="exact", tags={"ties"}),
    _problem("tall orthonormal", TALL, [1.0] * 4, tags={"ties"}),
    _problem("rank-deficient, tall", TALL, (3.0, 2.5, 0.0, 0.0), tags={"deficient"}),
    _problem("rank-deficient, complex", SQUARE, DEFICIENT, complex, tags={"deficient"}),
    _problem(
        "rank-deficient, tied",
        SQUARE,
        (3.0, 3.0, 2.0, 0.0, 0.0),
        factors="exact",
        tags={"deficient", "ties"},
    ),
    _problem("zero", SQUARE, [0.0] * 5, factors="identity", tags={"deficient", "ties"}),
    _problem("float32: generic", SQUARE, GENERIC, np.float32),
    *_problems_of(np.float32, "float32: ", "1e-6", {"1e20": 67, "1e-20": -66}),
)

BY_NAME = {problem.name: problem for problem in PROBLEMS}
