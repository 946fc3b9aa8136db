"""Error bars of gradients against what they estimate: float64 and 50-digit truth.

    python -m benchmarks.errorbars [--quick]

Random matrices of many spectra go through losses of every kind of primitive; each case compares
the relative error that `value_and_grad_with_error` reports with the error that the gradient has.
The truth is the plain pullback of the SVD, without masks or guards, in a wider arithmetic (float64
for float32 gradients, 50 digits for float64 ones) on the matrix as it is stored: there tied values
are apart by its last digit, and twice as many digits divide by that.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import jaxsvd

from .measure import Claim, Report, Row, main

DIGITS = 50
mp = mpmath.mp.clone()
mp.dps = DIGITS

# ----------------------------------------------------------------------------------------- truth


def pullback(U: Any, s: Any, V: Any, gU: Any, gs: Any, gV: Any) -> np.ndarray:
    """Return the gradient from real cotangents of a thin SVD, for any kind of number."""

    def skew(X):
        return (X - X.T) / 2

    k = len(s)
    a, b = skew(U.T @ gU), skew(V.T @ gV)
    apart = s[None, :] - s[:, None] + np.eye(k, dtype=int)
    core = (a + b) * (1 - np.eye(k, dtype=int)) / apart + (a - b) / (s[None, :] + s[:, None])
    core = core + np.diag(gs)
    left = (gU - U @ (U.T @ gU)) / s[None, :]
    right = (gV - V @ (V.T @ gV)) / s[None, :]
    return U @ core @ V.T + left @ V.T + U @ right.T


def numbers(a: np.ndarray, wide: bool) -> tuple[Any, Any, Any]:
    """Return (U, s, V) of a stored matrix in float64 or in 50 digits."""
    if not wide:
        U, s, Vh = np.linalg.svd(a.astype(np.float64), full_matrices=False)
        return U, s, Vh.T
    U, s, Vh = mp.svd_r(mp.matrix([[mp.mpf(x) for x in row] for row in a.tolist()]))
    U, s, Vh = (np.array(x.tolist(), dtype=object) for x in (U, s, Vh))
    return U, s[:, 0], Vh.T


# ---------------------------------------------------------------------------------------- losses


@dataclasses.dataclass(frozen=True)
class Loss:
    """A function of a matrix and weights of its shape, and its cotangents in any arithmetic.

    Attributes:
        name: what stands in the table.
        value: loss(A, G).
        cotangents: (U, s, V, G) -> (gU, gs, gV) of real triplets, as far as they are not zero.
    """

    name: str
    value: Callable
    cotangents: Callable


def through_map(f: Callable, df: Callable) -> Callable:
    """Return the cotangents of <G, U f(s) V^T>."""

    def cotangents(U, s, V, G):
        GV, GU = G @ V, G.T @ U
        return GV * f(s)[None, :], np.sum(U * GV, axis=0) * df(s), GU * f(s)[None, :]

    return cotangents


def through_sum(df: Callable) -> Callable:
    return lambda U, s, V, G: (0 * U, df(s), 0 * V)


def first(k: int, X: Any) -> Any:
    """Return X with zeros in all but its k first columns."""
    return np.concatenate([X[:, :k], 0 * X[:, k:]], axis=1)


def left_projector(k: int) -> Callable:
    """Return the cotangents of <G G^T, U_k U_k^T>."""
    return lambda U, s, V, G: (2 * first(k, G @ (G.T @ U)), 0 * s, 0 * V)


def best_approximation(k: int) -> Callable:
    """Return the cotangents of <G, U_k s_k V_k^T>."""

    def cotangents(U, s, V, G):
        gU, gs, gV = through_map(lambda s: s, lambda s: 1 + 0 * s)(U, s, V, G)
        return first(k, gU), np.concatenate([gs[:k], 0 * gs[k:]]), first(k, gV)

    return cotangents


def one_vector(U, s, V, G):
    """Return the cotangents of (g_0 . u_1)^2."""
    g = G[:, :1]
    gU = 0 * U
    gU[:, 1:2] = 2 * g * (g.T @ U[:, 1:2])
    return gU, 0 * s, 0 * V


def _log(x):
    return np.array([mp.log(y) for y in x], dtype=object) if x.dtype == object else np.log(x)


def inner(G, Y):
    return jnp.sum(G * Y)


def rational(s):
    return s / (1 + s * s)


def slope(s):
    return (1 - s * s) / (1 + s * s) ** 2


def triplets(A):
    return jaxsvd.svd(A, full_matrices=False)


def _by_svd(A, G):
    U, S, Vh = triplets(A)
    return inner(G, (U * rational(S)[None, :]) @ Vh)


def _projector(A, G, svd=triplets, k=2):
    return jnp.sum((svd(A)[0][:, :k].T @ G) ** 2)


def _of_gram(A, G):  # V log(1 + s^2) V^T, so U s log(1 + s^2) V^T
    return inner(G, A @ jaxsvd.hermitian_map(jnp.log1p, A.T @ A))


def _whitened(A, G):
    return inner(G, A @ jaxsvd.linalg.whitening(A.T @ A))


def _twice(A, G):  # f(s) = rational(1/s)
    return inner(G, jaxsvd.spectral_map(rational, jaxsvd.linalg.pinv(A).T))


FULL = (
    Loss("svd: U f(S) Vh", _by_svd, through_map(rational, slope)),
    Loss("svd: one vector", lambda A, G: (triplets(A).U[:, 1] @ G[:, 0]) ** 2, one_vector),
    Loss("svd: projector", _projector, left_projector(2)),
    Loss("svdvals: sum s^3", lambda A, G: jnp.sum(jaxsvd.svdvals(A) ** 3),
         through_sum(lambda s: 3 * s * s)),
    Loss("core_svd: projector", functools.partial(_projector, svd=lambda A: jaxsvd.core_svd(A, 2)),
         left_projector(2)),
    Loss("low_rank", lambda A, G: inner(G, jaxsvd.low_rank(A, 2)), best_approximation(2)),
    Loss("spectral_map", lambda A, G: inner(G, jaxsvd.spectral_map(rational, A)),
         through_map(rational, slope)),
    Loss("spectral_sum: s^4", lambda A, G: jaxsvd.spectral_sum(lambda s: s**4, A),
         through_sum(lambda s: 4 * s**3)),
    Loss("hermitian_map of A^T A", _of_gram,
         through_map(lambda s: s * _log(1 + s * s),
                     lambda s: _log(1 + s * s) + 2 * s * s / (1 + s * s))),
    Loss("linalg.whitening of A^T A", _whitened,
         through_map(lambda s: 1 + 0 * s, lambda s: 0 * s)),
    Loss("linalg.polar", lambda A, G: inner(G, jaxsvd.linalg.polar(A).U),
         through_map(lambda s: 1 + 0 * s, lambda s: 0 * s)),
    Loss("linalg.pinv", lambda A, G: inner(G, jaxsvd.linalg.pinv(A).T),
         through_map(lambda s: 1 / s, lambda s: -1 / (s * s))),
    Loss("spectral_map of pinv", _twice,
         through_map(lambda s: rational(1 / s), lambda s: -slope(1 / s) / (s * s))),
)  # fmt: skip


def of_triplets(name: str, k: int, svd: Callable) -> tuple[Loss, ...]:
    """Return a smooth loss, and one of a single vector where there are such, over k triplets."""

    def value(A, G):
        U, S, Vh = svd(A)
        return inner(G, U @ (S if S.ndim == 2 else jnp.diag(S)) @ Vh)

    smooth = Loss(f"{name}: U S Vh", value, best_approximation(k))
    if "core" in name:
        return (smooth,)
    vector = Loss(f"{name}: one vector", lambda A, G: (svd(A)[0][:, 1] @ G[:, 0]) ** 2, one_vector)
    return smooth, vector


RANK = 3


def unconverged() -> tuple[Loss, ...]:
    """Return losses over triplets of iterations that stop early."""
    key = jax.random.key(0)
    calls: dict[str, Callable] = {
        f"truncated_svd, tol={tol:g}": functools.partial(
            jaxsvd.truncated_svd, k=RANK, method="subspace", tol=tol
        )
        for tol in (1e-2, 1e-4)
    }
    calls["core_svd, tol=0.01"] = functools.partial(
        jaxsvd.core_svd, k=RANK, method="subspace", tol=1e-2
    )
    for q in (0, 2):
        calls[f"randomized_svd, {q} power iterations"] = functools.partial(
            jaxsvd.randomized_svd, key, k=RANK, oversampling=5, power_iterations=q
        )
    return tuple(loss for name, svd in calls.items() for loss in of_triplets(name, RANK, svd))


# -------------------------------------------------------------------------------------- matrices

SMALL, LARGE = (6, 4), (40, 30)
KINDS = ("generic", "near tie", "near tie at the end", "tie", "small", "graded", "deficient")
SPECTRA = ("i^-1/2", "exponential", "one gap")


def spectrum(kind: str, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return k random singular values of a kind; gaps of near ties from 1e-7 to 0.1."""
    s = np.sort(rng.uniform(0.5, 3, k))[::-1]
    i = np.arange(1.0, k + 1)
    match kind:
        case "near tie":  # between the first two, or across the cut
            j = rng.integers(2)
            s[j + 1] = s[j] * (1 - 10 ** rng.uniform(-7, -1))
        case "near tie at the end":
            s[-1] = s[-2] * (1 - 10 ** rng.uniform(-7, -1))
        case "tie":
            s[-1] = s[-2]
        case "small":
            s[-1] *= 10 ** rng.uniform(-5, -1)
        case "graded":
            s = 3 * 10.0 ** (-rng.uniform(0, 5) * (i - 1) / k)
        case "deficient":
            s[2:] = 0
        case "i^-1/2":
            s = i**-0.5
        case "exponential":
            s = np.exp(-i / rng.uniform(2, 6))
        case "one gap":
            s = np.where(i <= RANK, 1 + 1 / i, rng.uniform(0.3, 1) / i)
    return s


def defined(loss: Loss, kind: str) -> bool:
    """Say whether the function has a derivative, and no rank tolerance that decides its value."""
    if "whitening" in loss.name:
        return kind not in ("small", "graded", "deficient")
    return kind != "deficient" or not ("polar" in loss.name or "pinv" in loss.name)


def draw(
    kinds: tuple[str, ...], shape: tuple[int, int], count: int, dtype: Any, seed: int = 0
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the kinds, matrices and weights of ``count`` cases of each kind."""
    rng = np.random.default_rng(seed)
    m, n = shape

    def orthonormal(rows):
        return np.linalg.qr(rng.standard_normal((rows, min(shape))))[0]

    labels = [kind for kind in kinds for _ in range(count)]
    A = [orthonormal(m) * spectrum(kind, n, rng) @ orthonormal(n).T for kind in labels]
    return labels, np.stack(A).astype(dtype), rng.standard_normal((len(A), *shape)).astype(dtype)


# --------------------------------------------------------------------------------------- figures


def compare(loss: Loss, A: np.ndarray, G: np.ndarray, factors: list) -> tuple[Any, Any]:
    """Return estimated and true relative errors of the gradients of one loss, one program."""

    @jax.jit
    def run(A, G):
        def one(pair):
            return jaxsvd.value_and_grad_with_error(loss.value)(*pair)[1:]

        return jax.lax.map(one, (A, G))

    gradients, estimates = (np.asarray(x) for x in run(jnp.asarray(A), jnp.asarray(G)))
    true = []
    for (U, s, V), weights, gradient in zip(factors, G, gradients, strict=True):
        exact = pullback(U, s, V, *loss.cotangents(U, s, V, weights.astype(U.dtype)))
        difference = (exact - gradient.astype(exact.dtype)).astype(np.float64)
        true.append(np.linalg.norm(difference) / np.linalg.norm(gradient.astype(np.float64)))
    return estimates.astype(np.float64), np.array(true)


def ratios(loss: Loss, labels: list[str], A: np.ndarray, G: np.ndarray, factors: list):
    """Return estimate / error of the cases in which there is a derivative.

    Above 1 both say that no digit is right; an error below eps / 100 is one of luck.
    """
    estimates, true = compare(loss, A, G, factors)
    ratio = np.minimum(estimates, 1) / np.clip(true, np.finfo(A.dtype).eps / 100, 1)
    return ratio[[defined(loss, kind) for kind in labels]]


def summary(case: str, name: str, ratio: np.ndarray) -> Row:
    within = np.mean((ratio >= 0.1) & (ratio <= 10))
    note = (
        f"{ratio.size} cases, {within:.1%} within 10, from {ratio.min():.1e} to {ratio.max():.1e}"
    )
    return Row(case, name, None, error=float(np.exp(np.mean(np.log(ratio)))), note=note)


def calibration(
    case: str,
    losses: tuple[Loss, ...],
    kinds: tuple[str, ...],
    shape: tuple[int, int],
    count: int,
    dtype: Any,
    wide: bool = False,
) -> Report:
    """Return the ratios of all cases by loss, and the claims on them together."""
    labels, A, G = draw(kinds, shape, count, dtype)
    factors = [numbers(a, wide) for a in A]
    rows, found = [], []
    with np.errstate(all="ignore"):
        for loss in losses:
            found.append(ratios(loss, labels, A, G, factors))
            rows.append(summary(case, loss.name, found[-1]))
    ratio = np.concatenate(found)
    rows.append(summary(case, "all", ratio))
    within = float(np.mean((ratio >= 0.1) & (ratio <= 10)))
    claims = [
        Claim(case, "share of the estimates within a factor of 10 of the error", within, 0.95),
        Claim(case, "smallest estimate / error", float(ratio.min()), 0.01),
    ]
    return Report(rows, claims)


def run(quick: bool) -> Report:
    """Return all rows and claims; quick every second loss, in single precision."""
    counts = (20, 0, 5) if quick else (200, 20, 40)
    with jax.enable_x64(True):
        reports = [calibration("float32", FULL[:: 1 + quick], KINDS, SMALL, counts[0], np.float32)]
        if not quick:
            wide = calibration("float64", FULL, KINDS, SMALL, counts[1], np.float64, wide=True)
            reports.append(wide)
        early = unconverged()[:: 1 + quick]
        for dtype in (np.float32,) if quick else (np.float32, np.float64):
            case = f"{np.dtype(dtype)}, iterations"
            reports.append(calibration(case, early, SPECTRA, LARGE, counts[2], dtype))
    rows = [row for report in reports for row in report.rows]
    claims = [claim for report in reports for claim in report.claims]
    return Report(rows, claims, "estimate / error, geometric mean")


if __name__ == "__main__":
    raise SystemExit(main("errorbars", run))
