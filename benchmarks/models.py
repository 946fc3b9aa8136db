"""The classic models beside the libraries people use: PCA, robust PCA, alignment of point sets.

    python -m benchmarks.models [--quick]

PCA: 20000 x 2000 in single precision, k = 50, singular values that decay as i^-1/2, i^-1 and
exp(-i/20) + 1e-3, off the origin by one standard deviation; against scikit-learn's randomized
solver with its defaults. The default tolerance of `pca.fit` is 1e-5; the claims are on 1e-4, where
all its errors are still below scikit-learn's. Errors are those of the result against the exact
covariance, in double precision: how much more the components leave of the variance than the best
ones do (relative; below 1e-6 single precision does not tell), the sine of the largest angle between
the two spans, and the largest error of a variance by the first. Robust PCA: the random problems of
Candes, Li, Ma and Wright (2011), table 1. kabsch: a million pairs of 20 points in space; the loop
in NumPy runs over the first part and its time is extrapolated.
"""

import contextlib
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.decomposition import PCA

from jaxsvd import linalg
from jaxsvd.models import pca, robust

from .measure import Claim, Report, Row, first_call, main, medians

# What counts as no error of a reconstruction in single precision.
ROUNDING = 1e-6

SKLEARN, DEFAULT, LOOSE = "scikit-learn randomized", "jaxsvd pca.fit", "jaxsvd pca.fit, tol=1e-4"

DECAYS = {
    "i^-1/2": lambda i: i**-0.5,
    "i^-1": lambda i: 1 / i,
    "exp(-i/20) + 1e-3": lambda i: np.exp(-i / 20) + 1e-3,
}


def samples(m: int, n: int, decay) -> np.ndarray:
    """Return normal samples whose standard deviations decay along random axes."""
    rng = np.random.default_rng(0)
    scales = decay(np.arange(1.0, n + 1)).astype(np.float32)
    axes = np.linalg.qr(rng.standard_normal((n, n), np.float32))[0]
    x = (rng.standard_normal((m, n), np.float32) * scales) @ axes
    return x + rng.standard_normal(n, np.float32) * x.std()


def errors(model, exact) -> tuple[float, float, float]:
    """Return the errors of a reconstruction, of the subspace and of the variances."""
    C, w, V = exact
    components, variance = (np.asarray(x, np.float64) for x in model)
    k = len(components)
    Q = np.linalg.qr(components.T)[0]
    best = np.sum(w[k:])
    left = np.trace(C) - np.sum((C @ Q) * Q)
    sine = np.linalg.norm(Q - V[:, :k] @ (V[:, :k].T @ Q), 2)
    return left / best - 1, sine, np.max(np.abs(variance - w[:k])) / w[0]


def components(quick: bool) -> tuple[list[Row], list[Claim]]:
    m, n, k = (4000, 500, 20) if quick else (20000, 2000, 50)
    rows, claims = [], []
    for decay, of in DECAYS.items():
        x = samples(m, n, of)
        centred = x.astype(np.float64)
        centred -= centred.mean(axis=0)
        C = centred.T @ centred / (m - 1)
        w, V = np.linalg.eigh(C)
        exact = C, w[::-1], V[:, ::-1]
        del centred
        on_device = jnp.asarray(x)
        theirs = PCA(k, svd_solver="randomized", random_state=0)
        calls = {
            SKLEARN: lambda x=x, p=theirs: p.fit(x),
            DEFAULT: lambda x=on_device: pca.fit(x, k),
            LOOSE: lambda x=on_device: pca.fit(x, k, tol=1e-4),
        }
        first = {name: first_call(calls[name])[1] for name in (DEFAULT, LOOSE)}
        seconds = medians(calls, repeats=1 if quick else 5)
        fitted = calls[SKLEARN]()
        found = {SKLEARN: (fitted.components_, fitted.explained_variance_)}
        for name in first:
            model = calls[name]()
            found[name] = model.components, model.explained_variance
        case = f"PCA, {m} x {n}, k = {k}, decay {decay}"
        all_errors = {name: errors(value, exact) for name, value in found.items()}
        for name, (left, sine, variance) in all_errors.items():
            note = f"subspace {sine:.1e}, variances {variance:.1e}"
            compiled = first[name] - seconds[name] if name in first else None
            rows.append(Row(case, name, seconds[name], compiled, error=left, note=note))
        sklearn, _, ours = all_errors.values()  # of the loose one, the worst of ours
        claims += [
            Claim(
                case,
                "pca.fit, tol=1e-4: times faster than scikit-learn",
                seconds[SKLEARN] / seconds[LOOSE],
                3,
            ),
            Claim(
                case,
                "excess of the reconstruction by scikit-learn's",
                max(ours[0], ROUNDING) / max(sklearn[0], ROUNDING),
                1,
                False,
            ),
            Claim(case, "error of the subspace by scikit-learn's", ours[1] / sklearn[1], 1, False),
            Claim(
                case,
                "error of the variances by scikit-learn's, or by rounding",
                ours[2] / max(sklearn[2], ROUNDING),
                1,
                False,
            ),
        ]
    return rows, claims


def recovery(quick: bool) -> tuple[list[Row], list[Claim]]:
    """In double precision: L of normal factors of variance 1/n, errors of random signs."""
    n = 200 if quick else 500
    rank = n // 20
    rows, claims = [], []
    for share in (0.05, 0.10):
        rng = np.random.default_rng(0)
        L = rng.normal(0, n**-0.5, (n, rank)) @ rng.normal(0, n**-0.5, (rank, n))
        S = np.zeros(n * n)
        places = rng.choice(n * n, int(share * n * n), replace=False)
        S[places] = rng.choice([-1.0, 1.0], places.size)
        S = S.reshape(n, n)
        with jax.enable_x64(True):
            A = jnp.asarray(L + S)
            found, first = first_call(functools.partial(robust.pursuit, A))
            start = time.perf_counter()
            jax.block_until_ready(robust.pursuit(A))
            seconds = time.perf_counter() - start
        error, sparse = (
            float(np.linalg.norm(np.asarray(x) - wanted) / np.linalg.norm(wanted))
            for x, wanted in ((found.L, L), (found.S, S))
        )
        case = f"robust PCA, n = {n}, rank {rank}, {share:.0%} corrupted"
        note = f"rank {int(found.info.rank)}, {int(found.info.iterations)} steps, S {sparse:.1e}"
        rows.append(Row(case, "jaxsvd", seconds, first - seconds, error=error, note=note))
        claims.append(Claim(case, "relative error of L", error, 1e-6, False))
        claims.append(Claim(case, "relative error of S", sparse, 1e-6, False))
    return rows, claims


def loop(P: np.ndarray, Q: np.ndarray) -> np.ndarray:
    """The textbook: one pair after the other."""
    rotations = np.empty((len(P), 3, 3), P.dtype)
    for i, (p, q) in enumerate(zip(P, Q, strict=True)):
        H = (q - q.mean(0)).T @ (p - p.mean(0))
        U, _, Vh = np.linalg.svd(H)
        U[:, 2] *= np.sign(np.linalg.det(U @ Vh))
        rotations[i] = U @ Vh
    return rotations


def batched(torch, P, Q):
    H = (Q - Q.mean(1, keepdim=True)).mT @ (P - P.mean(1, keepdim=True))
    U, _, Vh = torch.linalg.svd(H)
    sign = torch.sign(torch.linalg.det(U @ Vh))
    U = torch.cat([U[..., :2], U[..., 2:] * sign[:, None, None]], dim=-1)
    R = U @ Vh
    return R, Q.mean(1) - (R @ P.mean(1)[..., None])[..., 0]


def alignment(quick: bool) -> tuple[list[Row], list[Claim]]:
    pairs, points = (20_000, 20) if quick else (1_000_000, 20)
    part = pairs // 50
    rng = np.random.default_rng(0)
    P = rng.standard_normal((pairs, points, 3), np.float32)
    R = np.linalg.qr(rng.standard_normal((pairs, 3, 3), np.float32))[0]
    R[:, 0] *= np.linalg.det(R)[:, None]
    Q = P @ np.swapaxes(R, 1, 2) + rng.standard_normal((pairs, 1, 3), np.float32)
    p, q = jnp.asarray(P), jnp.asarray(Q)
    calls = {
        "loop in NumPy": lambda: loop(P[:part], Q[:part]),
        "jaxsvd linalg.kabsch": lambda: linalg.kabsch(p, q).R,
    }
    with contextlib.suppress(ImportError):
        import torch

        tp, tq = torch.from_numpy(P), torch.from_numpy(Q)
        calls["torch batched"] = lambda: batched(torch, tp, tq)[0]
    _, first = first_call(calls["jaxsvd linalg.kabsch"])
    seconds = medians(calls, repeats=1 if quick else 3)
    seconds["loop in NumPy"] *= pairs / part
    case = f"kabsch, {pairs} pairs of {points} points"
    rows = []
    for name, call in calls.items():
        found = np.asarray(call())
        error = float(np.max(np.abs(found - R[: len(found)])))
        compiled = first - seconds[name] if "jaxsvd" in name else None
        note = f"extrapolated from {part} pairs" if "loop" in name else ""
        rows.append(Row(case, name, seconds[name], compiled, error=error, note=note))
    ours = seconds["jaxsvd linalg.kabsch"]
    claims = [
        Claim(case, f"times faster than {name}", seconds[name] / ours, 1)
        for name in calls
        if "jaxsvd" not in name
    ]
    return rows, claims


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    rows, claims = [], []
    for part in (components, recovery, alignment):
        found = part(quick)
        rows += found[0]
        claims += found[1]
    return Report(rows, claims, "excess of the reconstruction; relative of L; largest entry of R")


if __name__ == "__main__":
    raise SystemExit(main("models", run))
