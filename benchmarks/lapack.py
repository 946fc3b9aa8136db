"""The trial that LAPACK's own test program puts SVDs through, for the functions of this library.

The sizes and the 16 types of matrix are those of its test of the bidiagonal SVD, two more types
those of its test of the drivers: evenly spaced values just below overflow and above underflow. A
case is one decomposition of one matrix, its ratio the largest of

    |A - U S Vh| / (|A| max(m, n) eps),  |I - U^H U| / (m eps),  |I - Vh Vh^H| / (n eps),
    |S - the values prescribed, or those of `svd`| / (s_1 max(m, n) eps)

in the 1-norm, in double precision, and infinite where S is not in order. LAPACK accepts 50.

References: TESTING/EIG/dchkbd.f and ddrvbd.f of Reference-LAPACK, their descriptions; Demmel and
McKenney (1989), "A test matrix generation suite", LAPACK Working Note 9.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd

from .trials import Case, Row, judge

BAR = 30.0
DTYPES = (np.float32, np.complex64, np.float64, np.complex128)

# LAPACK's own pairs, and the size where its blocked code and divide and conquer set in.
SMALL = ((0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (3, 1), (3, 3))
MEDIUM = ((10, 10), (10, 16), (16, 10), (16, 16), (30, 30), (30, 40), (40, 30), (40, 40))
LARGE = ((200, 200), (200, 120))
SHAPES = SMALL + MEDIUM + LARGE

# Up to this longer side a stack holds eight matrices of each type: enough of them for the router
# to take Jacobi for `vmap` (at 10 x 10 from 128 matrices on).
REPEATED_UP_TO, REPEATS = 10, 8


class Kind(NamedTuple):
    """A type of matrix.

    Attributes:
        name: what it is.
        values: (k, eps, rng) -> prescribed values with signs, or None: entries are drawn.
        rotated: whether they are multiplied by orthogonal matrices on both sides.
        scale: (finfo) -> a factor.
    """

    name: str
    values: Callable[[int, float, np.random.Generator], np.ndarray] | None
    rotated: bool = False
    scale: Callable[[Any], float] = lambda info: 1.0


def _signs(k: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice([-1.0, 1.0], k)


def _even(k, eps, rng):
    return np.linspace(1, eps, k) * _signs(k, rng)


def _geometric(k, eps, rng):
    return np.geomspace(1, eps, k) * _signs(k, rng)


def _clustered(k, eps, rng):
    return np.where(np.arange(k) == 0, 1.0, eps) * _signs(k, rng)


def _large(info) -> float:
    return float(info.max) ** 0.5


def _small(info) -> float:
    return float(info.tiny) ** 0.5


KINDS = (
    Kind("zero", lambda k, eps, rng: np.zeros(k)),
    Kind("identity", lambda k, eps, rng: np.ones(k)),
    Kind("diagonal, even", _even),
    Kind("diagonal, geometric", _geometric),
    Kind("diagonal, clustered", _clustered),
    Kind("diagonal, even, root of overflow", _even, scale=_large),
    Kind("diagonal, even, root of underflow", _even, scale=_small),
    Kind("even", _even, True),
    Kind("geometric", _geometric, True),
    Kind("clustered", _clustered, True),
    Kind("even, root of overflow", _even, True, _large),
    Kind("even, root of underflow", _even, True, _small),
    Kind("random", None),
    Kind("random, root of overflow", None, scale=_large),
    Kind("random, root of underflow", None, scale=_small),
    Kind("bidiagonal, wild exponents", None),
    Kind("even, near overflow", _even, True, lambda info: float(info.max) * float(info.eps)),
    Kind("even, near underflow", _even, True, lambda info: float(info.tiny) / float(info.eps)),
)


class Specimen(NamedTuple):
    """A matrix of the trial: its name, itself, and the prescribed singular values or None."""

    name: str
    a: np.ndarray
    S: np.ndarray | None


def _orthonormal(m: int, k: int, wide: Any, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((m, k))
    if wide is np.complex128:
        x = x + 1j * rng.standard_normal((m, k))
    return np.linalg.qr(x)[0]


def specimen(kind: Kind, m: int, n: int, dtype: Any, seed: int) -> Specimen:
    """Return a matrix (m, n) of a kind, made in double precision and rounded to ``dtype``."""
    rng = np.random.default_rng([m, n, seed])
    info, k = np.finfo(dtype), min(m, n)
    wide = np.complex128 if np.issubdtype(dtype, np.complexfloating) else np.float64
    scale, S = kind.scale(info), None
    if kind.values is not None:
        d = kind.values(k, float(info.eps), rng) * scale
        S = np.sort(np.abs(d))[::-1]
        a = np.zeros((m, n), wide)
        a[np.arange(k), np.arange(k)] = d
        if kind.rotated and k:
            a = (_orthonormal(m, k, wide, rng) * d) @ np.conj(_orthonormal(n, k, wide, rng).T)
    elif kind.name.startswith("bidiagonal"):
        bound = -2 * np.log(float(info.eps))
        entries = np.exp(rng.uniform(-bound, bound, (m, n)))
        upper = np.eye(m, n, 1 if m >= n else -1, dtype=bool)
        a = np.where(np.eye(m, n, dtype=bool) | upper, entries, 0).astype(wide)
        a[k:] = a[:, k:] = 0 if k else a[k:]
    else:
        a = rng.uniform(-1, 1, (m, n)) * scale
        if wide is np.complex128:
            a = a + 1j * rng.uniform(-1, 1, (m, n)) * scale
    return Specimen(kind.name, a.astype(dtype), S)


def specimens(m: int, n: int, dtype: Any, kinds: tuple[Kind, ...] = KINDS) -> list[Specimen]:
    """Return one matrix of each kind, eight of each for small sizes; the first ones differ."""
    repeats = REPEATS if max(m, n) <= REPEATED_UP_TO else 1
    return [specimen(kind, m, n, dtype, seed) for seed in range(repeats) for kind in kinds]


def _norm(x: np.ndarray) -> float:
    return float(np.abs(x).sum(axis=0).max(initial=0))


def _wide(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def _unit(a: np.ndarray) -> float:
    """Return a power of two by which a may be divided without overflow or loss."""
    largest = max(np.abs(a.real).max(initial=0), np.abs(a.imag).max(initial=0))
    return float(np.ldexp(1.0, np.frexp(largest)[1] - 1)) if largest > 0 else 1.0


def order_ratio(S: np.ndarray) -> float:
    """Return 0 if the values are finite, not negative and in order."""
    right = np.all(np.isfinite(S)) and np.all(S >= 0) and np.all(np.diff(S) <= 0)
    return 0.0 if right else np.inf


def values_ratio(S: Any, exact: np.ndarray, eps: float, size: int) -> float:
    """Return the largest error of the values and whether they are in order."""
    S, exact = _wide(S), exact[: len(S)]
    unit = _unit(exact)
    error = np.abs(S / unit - exact / unit).max(initial=0)
    scale = np.max(exact / unit, initial=0) * size * eps
    return max(order_ratio(S), error / scale if error else 0.0)


def orthogonality_ratio(X: np.ndarray, eps: float) -> float:
    """Return the loss of orthogonality of columns."""
    rows, columns = X.shape
    return _norm(np.eye(columns) - np.conj(X.T) @ X) / (max(rows, 1) * eps)


def ratio(a: np.ndarray, result: tuple[Any, Any, Any], exact: np.ndarray | None) -> float:
    """Return the ratio of triplets, all of them or the leading ones of A."""
    U, S, Vh = (_wide(x) for x in result)
    (m, n), k, eps = a.shape, S.shape[-1], float(np.finfo(a.dtype).eps)
    size, unit = max(m, n, 1), _unit(_wide(a))
    ratios = [orthogonality_ratio(U, eps), orthogonality_ratio(np.conj(Vh.T), eps)]
    ratios.append(order_ratio(S) if exact is None else values_ratio(S, exact, eps, size))
    A, S = _wide(a) / unit, S / unit
    U, V = U[:, :k], np.conj(Vh[:k].T)
    whole = _norm(A)
    differences = [A - (U * S) @ np.conj(V.T)] if k == min(m, n) else []
    differences += [A @ V - U * S, np.conj(A.T) @ U - V * S]
    ratios += [_norm(x) / (whole * size * eps) if whole else _norm(x) / eps for x in differences]
    return float(np.max(ratios))  # NaN stays NaN


def leading(m: int, n: int) -> int:
    """Return the k that `truncated_svd` is asked for."""
    return max(1, min(m, n) // 2)


def _core(a):
    U, C, Vh = jaxsvd.core_svd(a)
    return U, jnp.real(jnp.diagonal(C)), Vh


# Name: what is called. None stands for vectors that are not asked for.
FUNCTIONS: dict[str, Callable[[jax.Array], tuple]] = {
    "svd": lambda a: jaxsvd.svd(a),
    "svdvals": lambda a: (None, jaxsvd.svdvals(a), None),
    "truncated_svd": lambda a: jaxsvd.truncated_svd(a, leading(*a.shape[-2:])),
    "svd by Jacobi": lambda a: jaxsvd.svd(a, method="jacobi"),
    "core_svd": _core,
}

# What the router takes on accelerators, tried here on CPU.
OF_ACCELERATORS: dict[str, Callable[[jax.Array], tuple]] = {
    "svd by polar factors": lambda a: jaxsvd.svd(a, method="polar"),
    "svd by eigh and Jacobi": lambda a: jaxsvd.svd(a, method="gram"),
}


def modes(function: str, m: int, n: int) -> tuple[str, ...]:
    """Return the ways to call a function on a size.

    There is no k >= 1 of an empty matrix. Jacobi rotates at least 16 matrices at once, so that one
    of 200 x 120 takes as long as a stack, and 200 x 200 five times as long.
    """
    if function == "truncated_svd" and min(m, n) == 0:
        return ()
    if function.endswith("Jacobi") and max(m, n) > 100:
        return ("vmapped",) if m != n else ()
    return ("single", "vmapped")


def judged(s: Specimen, function: str, result: tuple, reference: np.ndarray) -> float:
    """Return the ratio of one result; values are those prescribed, or the reference."""
    exact = reference if s.S is None else s.S
    if function == "svdvals":
        eps = float(np.finfo(s.a.dtype).eps)
        return values_ratio(result[1], exact, eps, max(*s.a.shape, 1))
    return ratio(s.a, result, exact)


def cases(
    function: str,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    dtypes: tuple = DTYPES,
) -> Iterator[Case]:
    """Yield the cases of one function: each kind, size and dtype, alone and in a stack.

    A size compiles once for each mode: all kinds go through the same two programs.
    """
    call = (FUNCTIONS | OF_ACCELERATORS)[function]
    for m, n in shapes:
        for dtype in dtypes:
            found = specimens(m, n, dtype)
            stack = jnp.asarray(np.stack([s.a for s in found]))
            # Where no values are prescribed: those of NumPy in double precision.
            values = [np.linalg.svd(_wide(s.a), compute_uv=False) for s in found]
            for mode in modes(function, m, n):
                if mode == "single":
                    program = jax.jit(call)
                    results = [program(a) for a in stack[: len(KINDS)]]
                else:
                    together = jax.tree.map(np.asarray, jax.jit(jax.vmap(call))(stack))
                    leaves, tree = jax.tree.flatten(together)
                    results = [tree.unflatten(one) for one in zip(*leaves, strict=True)]
                for s, result, reference in zip(found, results, values, strict=False):
                    name = f"{s.name}, {m} x {n}, {np.dtype(dtype)}, {mode}"
                    yield name, judged(s, function, result, reference)


def lapack(quick: bool) -> Iterator[Row]:
    """Yield one row for each function."""
    shapes = ((3, 1), (10, 16), (40, 30)) if quick else SHAPES
    dtypes = (np.float32, np.complex128) if quick else DTYPES
    for function in FUNCTIONS | OF_ACCELERATORS:
        found = cases(function, shapes, dtypes)
        yield judge(f"LAPACK's own trial, `{function}`", found, BAR)
