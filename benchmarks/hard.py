"""Matrices that are hard by name: ill-conditioned, graded, with ties, not finite, and flat ones.

A ratio is that of `lapack`: residual, orthogonality and values over what rounding may cost. Where
a matrix is not finite, all that is returned must be NaN; where numbers are denormal, the error is
measured against the least normal number instead, since XLA takes them for zeros.

References: Higham (2002), "Accuracy and Stability of Numerical Algorithms", chapter 28 (Hilbert,
Kahan, Vandermonde, companion); Lauchli (1961); Trefethen and Embree (2005) (Grcar); Slepian (1978)
(prolate); Reference-LAPACK issues 255, 316 and 672 (divide and conquer).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd

from .lapack import BAR, FUNCTIONS, Specimen, judged, ratio
from .trials import Case, Row, judge, whether

N = 32  # beyond 25 LAPACK uses divide and conquer
TALL = (40, 30)


def _rotations(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))


def _kahan(n: int, angle: float = 1.2) -> np.ndarray:
    upper = np.eye(n) - np.cos(angle) * np.triu(np.ones((n, n)), 1)
    return np.sin(angle) ** np.arange(n)[:, None] * upper


def _companion(coefficients: np.ndarray) -> np.ndarray:
    n = len(coefficients)
    a = np.eye(n, k=-1)
    a[0] = -coefficients
    return a


def _near_ties(n: int, eps: float, seed: int) -> np.ndarray:
    """Return a matrix whose values are all 1 up to ten roundings or more."""
    rng = np.random.default_rng(seed)
    U, V = _rotations(rng, n)
    return (U * (1 + 30 * eps * rng.standard_normal(n))) @ V


def square(dtype: Any) -> dict[str, np.ndarray]:
    """Return the matrices (32, 32) by name."""
    info, i, rng = np.finfo(dtype), np.arange(N), np.random.default_rng(0)
    eps, decades = float(info.eps), 300 if info.bits == 64 else 36
    U, V = _rotations(rng, N)
    normal = rng.standard_normal((N, N))
    one = np.zeros((N, N))
    one[5, 7] = -1.0
    orders = np.float64(N - i)  # of the derivatives of the truncated exponential series
    return {
        "Kahan": _kahan(N),
        "Hilbert": 1 / (i[:, None] + i + 1.0),
        "Grcar": np.triu(np.ones((N, N))) - np.triu(np.ones((N, N)), 4) - np.eye(N, k=-1),
        "Vandermonde": np.linspace(-1, 1, N)[:, None] ** i,
        "companion of 1 to 32": _companion(np.poly(np.linspace(0.1, 1.5, N))[1:]),
        "companion of the exponential series": _companion(np.cumprod(orders)[:N].clip(max=1e36)),
        "graded diagonal": np.diag(10 ** np.linspace(decades, -decades, N)),
        "graded, full": (U * 10 ** np.linspace(0, -decades, N)) @ V,
        "graded rows": 10 ** np.linspace(0, -decades, N)[:, None] * normal,
        "all equal": np.full((N, N), 1 / 3),
        "signed zeros": np.where(rng.random((N, N)) < 0.5, 0.0, -0.0),
        "one entry among signed zeros": np.where(one == 0, -0.0, one),
        "duplicated rows": rng.standard_normal((4, N))[rng.integers(0, 4, N)],
        "permutation": np.eye(N)[rng.permutation(N)],
        "permutation and rounding": np.eye(N)[rng.permutation(N)] + eps * normal,
        "prolate": 0.5 * np.sinc(0.5 * (i[:, None] - i)),
        "powers of one row": np.cumprod(np.tile(rng.uniform(0.3, 1.5, N), (N, 1)), axis=0),
        "Wilkinson": np.diag(np.abs(i - N // 2)) + np.eye(N, k=1) + np.eye(N, k=-1),
        "nilpotent": np.eye(N, k=1),
        "ones on two diagonals": np.eye(N) + np.eye(N, k=1),
        "equal to 30 eps": _near_ties(N, eps, 0),
        "sparse among tiny": np.where(rng.random((N, N)) < 0.03, normal, 1e-18 * normal),
        "projector": U[:, : N // 2] @ U[:, : N // 2].T,
        "largest numbers": float(info.max)
        * np.where(rng.random((N, N)) < 0.5, 1.0, -1.0)
        / (2 * N),
    }


def tall(dtype: Any) -> dict[str, np.ndarray]:
    """Return the matrices (40, 30) by name."""
    (m, n), info, rng = TALL, np.finfo(dtype), np.random.default_rng(1)
    eps = float(info.eps)

    def lauchli(mu):
        return np.vstack([np.ones((1, n)), mu * np.eye(n), np.zeros((m - n - 1, n))])

    return {
        "Lauchli, root of eps": lauchli(eps**0.5),
        "Lauchli, eps": lauchli(eps),
        "Vandermonde": np.linspace(0, 1, m)[:, None] ** np.arange(n),
        "duplicated columns": rng.standard_normal((m, 5))[:, rng.integers(0, 5, n)],
        "a row of zeros, a column of zeros": np.pad(
            rng.standard_normal((m - 1, n - 1)), ((1, 0), (0, 1))
        ),
        "all equal": np.full((m, n), 0.1),
    }


def line(dtype: Any) -> dict[str, np.ndarray]:
    """Return columns (40, 1) by name."""
    rng = np.random.default_rng(2)
    large = float(np.finfo(dtype).max) / 16
    return {
        "a column": rng.standard_normal((40, 1)),
        "a column of zeros": np.zeros((40, 1)),
        "a unit column": -np.eye(40, 1),
        "a huge column": large * rng.uniform(-1, 1, (40, 1)),
    }


GROUPS: dict[str, Callable[[Any], dict[str, np.ndarray]]] = {
    "square": square,
    "tall": tall,
    "wide": lambda dtype: {f"{name}, transposed": a.T for name, a in tall(dtype).items()},
    "column": line,
    "row": lambda dtype: {f"{name}, transposed": a.T for name, a in line(dtype).items()},
}


def named(group: str, dtype: Any) -> list[Specimen]:
    """Return the matrices of a group in a dtype; denormal entries, which XLA drops, are zeros."""
    found = []
    for name, a in GROUPS[group](dtype).items():
        a = np.where(np.abs(a) < float(np.finfo(dtype).tiny), 0 * a, a)
        found.append(Specimen(name, a.astype(dtype), None))
    return found


ALL = FUNCTIONS | {
    "truncated_svd, k=1": lambda a: jaxsvd.truncated_svd(a, 1),
    "truncated_svd, k=min(m, n)": lambda a: jaxsvd.truncated_svd(a, min(a.shape[-2:])),
}


def _both(program: Callable, stack: np.ndarray) -> dict[str, list]:
    """Return the results of each matrix, alone and in a stack."""
    alone, together = jax.jit(program), jax.tree.map(np.asarray, jax.jit(jax.vmap(program))(stack))
    leaves, tree = jax.tree.flatten(together)
    return {
        "single": [alone(a) for a in stack],
        "vmapped": [tree.unflatten(one) for one in zip(*leaves, strict=True)],
    }


def cases(function: str, group: str, dtype: Any) -> Iterator[Case]:
    """Yield the cases of one function, alone and in a stack."""
    found = named(group, dtype)
    stack = np.stack([s.a for s in found])
    for mode, results in _both(ALL[function], stack).items():
        for s, result in zip(found, results, strict=True):
            exact = np.linalg.svd(np.float64(s.a), compute_uv=False)
            name = f"{s.name}, {np.dtype(dtype)}, {mode}"
            yield name, judged(s, function, result, exact)


def not_finite(function: str, dtype: Any) -> Iterator[Case]:
    """Yield whether NaN or Inf in one matrix gives NaN there, and nothing in its neighbours."""
    a = np.random.default_rng(3).standard_normal((5, *TALL)).astype(dtype)
    for at, value in ((1, np.nan), (2, np.inf), (3, -np.inf)):
        a[at, 4, 5] = value
    for mode, results in _both(ALL[function], a).items():
        for at, what in enumerate(("before", "NaN", "Inf", "-Inf", "after")):
            numbers = [np.asarray(x) for x in jax.tree.leaves(results[at])]
            holds = np.isfinite if what in ("before", "after") else np.isnan
            ratio = whether(all(np.all(holds(x)) for x in numbers))
            yield f"{what}, {np.dtype(dtype)}, {mode}", ratio


def denormal(function: str, dtype: Any) -> Iterator[Case]:
    """Yield the error of values of denormal matrices, in units of the least normal number."""
    tiny = float(np.finfo(dtype).tiny)
    a = np.random.default_rng(4).uniform(-1, 1, (3, *TALL))
    a = (a * np.array([tiny, tiny / 100, tiny / 1e4])[:, None, None]).astype(dtype)
    a[1, 0, 0] = 4 * tiny
    for mode, results in _both(ALL[function], a).items():
        for matrix, (_, S, _), name in zip(a, results, ("partly", "but one", "all"), strict=True):
            exact = np.linalg.svd(np.float64(matrix) / tiny, compute_uv=False)
            error = np.abs(np.float64(S) / tiny - exact[: len(S)]).max()
            yield f"{name} denormal, {np.dtype(dtype)}, {mode}", error / max(TALL)


def graded_columns() -> Iterator[Case]:
    """Yield the relative error of each value by Jacobi, against 80 digits, in eps."""
    import mpmath

    a = np.random.default_rng(5).standard_normal((8, 8)) * 10.0 ** (-12 * np.arange(8))
    with mpmath.workdps(140):
        exact = mpmath.svd_r(mpmath.matrix(a.tolist()), compute_uv=False)
        S = np.asarray(jax.jit(lambda a: jaxsvd.svd(a, method="jacobi").S)(a))
        for i, (s, t) in enumerate(zip(S, exact, strict=True)):
            eps = np.finfo(np.float64).eps
            yield f"value {i} of 8 over 84 decades", float(abs(mpmath.mpf(float(s)) - t) / t) / eps


# Matrices on which LAPACK of one machine (OpenBLAS, AVX2) failed: (seed, size, dtype). It did not
# converge, or lost all orthogonality without a word (the last two).
FAILED_ON = (
    (56, 150, np.float32),
    (542, 150, np.float32),
    (92, 150, np.float64),
    (143, 150, np.float64),
    (545, 150, np.float64),
    (683, 150, np.float64),
    (403, 256, np.float32),
    (850, 256, np.float32),
)


def equal_values(seed: int, n: int, dtype: Any) -> np.ndarray:
    """Return a matrix whose values are equal up to 10, 30 or 100 eps."""
    rng, eps = np.random.default_rng([seed, n]), np.finfo(dtype).eps
    noise = (10, 30, 100)[seed % 3] * eps
    left = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = 1 + noise * rng.standard_normal(n)
    return ((left * values) @ np.linalg.qr(rng.standard_normal((n, n)))[0]).astype(dtype)


def divide_and_conquer(seeds: tuple = FAILED_ON) -> Iterator[Case]:
    """Yield ratios of `svd` where divide and conquer fails."""
    programs: dict[tuple, Callable] = {}
    for seed, n, dtype in seeds:
        program = programs.setdefault((n, dtype), jax.jit(FUNCTIONS["svd"]))
        a = equal_values(seed, n, dtype)
        yield f"{n} values equal to rounding, seed {seed}", ratio(a, program(a), None)


def flat_spectra() -> Iterator[Case]:
    """Yield whether randomized SVD of a flat spectrum is right or says that it is not."""
    rng, tol = np.random.default_rng(6), 1e-5
    Q = np.linalg.qr(rng.standard_normal((100_000, 20)))[0]
    V = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    for name, s in {
        "flat": np.linspace(1, 0.99, 20),
        "one of 1.05 over a flat rest": np.where(np.arange(20) == 0, 1.05, 1.0),
        "all equal": np.ones(20),
    }.items():
        a = ((Q * s) @ V.T).astype(np.float32)
        for function, call in {
            "randomized_svd": lambda a: jaxsvd.randomized_svd(
                jax.random.key(0), a, 1, return_info=True
            ),
            "truncated_svd": lambda a: jaxsvd.truncated_svd(a, 1, return_info=True),
        }.items():
            (U, S, Vh), info = call(jnp.asarray(a))
            u, s1, v = np.float64(U)[:, 0], float(S[0]), np.float64(Vh)[0]
            right = np.linalg.norm(np.float64(a) @ v - s1 * u)
            left = np.linalg.norm(np.float64(a).T @ u - s1 * v)
            is_right = max(left, right) <= 2 * tol * s[0]
            must = function == "truncated_svd"
            holds = is_right or (not must and not bool(info.converged))
            yield f"{function}, 100000 x 20, {name}, k=1", whether(holds)


def hard(quick: bool) -> Iterator[Row]:
    """Yield one row for each kind of hardship."""
    dtypes = (np.float32,) if quick else (np.float32, np.float64)
    groups = ("square", "row") if quick else tuple(GROUPS)
    chosen = ("svd", "svd by Jacobi") if quick else tuple(ALL)

    def each(of: Callable[[str, Any], Iterator[Case]], functions=chosen):
        for function in functions:
            for dtype in dtypes:
                yield from ((f"{function}: {name}", r) for name, r in of(function, dtype))

    found = each(lambda f, d: (case for g in groups for case in cases(f, g, d)))
    yield judge("hard by name (Kahan, Hilbert, Lauchli, Grcar, ...)", found, BAR)
    yield judge("one NaN, one Inf", each(not_finite), BAR)
    yield judge("denormal numbers", each(denormal, chosen[:2]), BAR, note="in least normal numbers")
    yield judge("graded columns by Jacobi, against mpmath", graded_columns(), BAR, note="in eps")
    yield judge("where divide and conquer fails", divide_and_conquer(), BAR)
    if not quick:
        yield judge("flat spectra: right or flagged", flat_spectra(), BAR)
