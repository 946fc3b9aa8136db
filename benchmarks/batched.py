"""Batches of small matrices, and full SVDs of all sizes: this library against jnp.linalg.

    python -m benchmarks.batched [--quick]

The full SVD with signs fixed against one whose signs are free; gradients of a loss of U, S and Vh;
`jax.vmap` against a leading axis. LAPACK spreads a batch over the cores, Jacobi runs on one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsvd

from .measure import Claim, Report, main, timed

OURS, THEIRS = "jaxsvd.svd", "jnp.linalg.svd"

# Matrices, size, bar of the values, bar of the gradient.
BATCHES = (
    (100_000, 3, 7.0, 5.0),
    (20_000, 4, 7.0, 5.0),
    (4_000, 8, 3.0, 5.0),
    (1_000_000, 2, 1.0, 1.0),
    (1_000, 16, 0.97, 0.97),
)
FULL = ((128, 128), (512, 512), (1024, 1024), (2048, 2048), (2048, 256), (256, 2048), (20_000, 50))


def thin(svd):
    return lambda a: svd(a, full_matrices=False)


def gradient(svd, w):
    def loss(a):
        U, S, Vh = svd(a, full_matrices=False)
        return jnp.sum(U * w) + jnp.sum(Vh * w) + jnp.sum(S**2)

    return jax.jit(jax.value_and_grad(loss))


def residual(a, result):
    """Return the largest |A - U S Vh|_F / |A|_2; None for a gradient."""
    if len(result) != 3:
        return None
    U, S, Vh = (np.asarray(x, np.float64) for x in result)
    back = U * S[..., None, :] @ Vh
    return float((np.linalg.norm(np.asarray(a) - back, axis=(-2, -1)) / S[..., 0]).max())


def batch(count: int, n: int, bar: float, gradient_bar: float, repeats: int) -> Report:
    case = f"{count:,} of {n} x {n}"
    a, w = (jax.random.normal(jax.random.key(i), (count, n, n), jnp.float32) for i in (0, 1))
    ours, theirs = jax.jit(thin(jaxsvd.svd)), jax.jit(thin(jnp.linalg.svd))
    mapped = jax.jit(jax.vmap(thin(jaxsvd.svd)))
    our_gradient, their_gradient = gradient(jaxsvd.svd, w), gradient(jnp.linalg.svd, w)
    calls = {
        OURS: lambda: ours(a),
        f"jax.vmap({OURS})": lambda: mapped(a),
        THEIRS: lambda: theirs(a),
        f"{OURS}, gradient": lambda: our_gradient(a),
        f"{THEIRS}, gradient": lambda: their_gradient(a),
    }
    rows = timed(case, calls, functools.partial(residual, a), repeats)
    seconds = {row.name: row.seconds for row in rows}
    same = all(np.array_equal(x, y) for x, y in zip(ours(a), mapped(a), strict=True))
    ratio = seconds[THEIRS] / seconds[OURS]
    back = seconds[f"{THEIRS}, gradient"] / seconds[f"{OURS}, gradient"]
    vmap = seconds[f"jax.vmap({OURS})"] / seconds[OURS]
    claims = [
        Claim(case, "jnp.linalg.svd / ours", ratio, bar),
        Claim(case, "gradient, jnp.linalg.svd / ours", back, gradient_bar),
        Claim(case, "vmap / leading axis", vmap, 1.1, at_least=False),
        Claim(case, "vmap gives the same bits", float(same), 1),
    ]
    return Report(rows, claims)


def full(m: int, n: int, repeats: int) -> Report:
    case = f"full {m} x {n}"
    a = jax.random.normal(jax.random.key(0), (m, n), jnp.float32)
    ours, theirs = jax.jit(thin(jaxsvd.svd)), jax.jit(thin(jnp.linalg.svd))
    calls = {OURS: lambda: ours(a), THEIRS: lambda: theirs(a)}
    rows = timed(case, calls, functools.partial(residual, a), repeats)
    seconds = {row.name: row.seconds for row in rows}
    return Report(rows, [Claim(case, f"{THEIRS} / ours", seconds[THEIRS] / seconds[OURS], 0.97)])


def run(quick: bool) -> Report:
    """Return all cases; quick takes a tenth of the matrices and sizes up to 512."""
    part, repeats = (10, 5) if quick else (1, 11)
    reports = [batch(count // part, *rest, repeats) for count, *rest in BATCHES]
    for m, n in FULL:
        if not quick or m * n <= 512 * 2048:
            reports.append(full(m, n, repeats if min(m, n) <= 512 else 7))
    return Report(
        [row for report in reports for row in report.rows],
        [claim for report in reports for claim in report.claims],
        "|A - U S Vh|_F / s_1",
    )


if __name__ == "__main__":
    raise SystemExit(main("batched", run))
