"""What compressing one weight costs: its factors by products, beside a full SVD cut off.

    python -m benchmarks.compress [--quick]

Error: |W - W'|_F over that of the full SVD at the same rank, less one. The weights have a slow
spectrum, i^-1/2, and none at all, Gaussian entries. Allocation: the ranks of a model of many
weights, on the host.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxsvd import compress

from . import matrices
from .measure import Claim, Report, Row, first_call, main, medians


@functools.partial(jax.jit, static_argnames="rank")
def full(W: jax.Array, rank: int):
    """Return the factors that a truncated `jnp.linalg.svd` gives."""
    U, s, Vh = jnp.linalg.svd(W, full_matrices=False)
    return U[:, :rank], s[:rank], Vh[:rank]


@functools.partial(jax.jit, static_argnames="rank")
def ours(W: jax.Array, rank: int):
    """Return the factors of `compress.factorize`."""
    found = compress.factorize(W, rank)
    return found.U, found.s, found.Vh


def one_weight(kind: str, n: int, rank: int) -> tuple[list[Row], list[Claim]]:
    """Return times and errors for a square weight, and the claims on them."""
    if kind == "Gaussian":
        W = np.random.default_rng(0).standard_normal((n, n), np.float32)
    else:
        W = matrices.with_spectrum(n, n, np.arange(1, n + 1) ** -0.5)
    W = jnp.asarray(W)
    calls = {
        "jnp.linalg.svd": functools.partial(full, W, rank),
        "factorize": functools.partial(ours, W, rank),
    }
    found = {name: first_call(call)[0] for name, call in calls.items()}
    errors = {}
    for name, (U, s, Vh) in found.items():
        product = jnp.matmul(U * s, Vh, precision="highest")
        errors[name] = float(jnp.linalg.norm(W - product))
    seconds = medians(calls, repeats=1, warm=0)
    best = errors["jnp.linalg.svd"]
    case = f"{n} x {n} to rank {rank}, {kind}"
    rows = [Row(case, name, seconds[name], error=errors[name] / best - 1) for name in calls]
    return rows, [
        Claim(case, "times faster", seconds["jnp.linalg.svd"] / seconds["factorize"], 5),
        Claim(case, "error above the full SVD's", errors["factorize"] / best - 1, 0.01, False),
    ]


def allocation(layers: int) -> tuple[list[Row], list[Claim]]:
    """Return the time of `allocate` for transformer layers, and how far from the optimum it is."""
    rng = np.random.default_rng(0)
    shapes, spectra = {}, {}
    for i in range(layers):
        for name, shape in {"qkvo": (4, 768, 768), "up": (768, 3072), "down": (3072, 768)}.items():
            values = np.arange(1, 769) ** -rng.uniform(0.3, 0.8) * rng.exponential()
            shapes[f"{i}/{name}"] = shape
            spectra[f"{i}/{name}"] = np.broadcast_to(values, (*shape[:-2], 768))
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    rows, worst = [], 0.0
    case = f"allocate, {len(shapes)} weights of {total / 1e6:.0f} million"
    for share in (0.3, 0.5, 0.7):
        start = time.perf_counter()
        found = compress.allocate(spectra, shapes, int(share * total))
        seconds = time.perf_counter() - start
        gap = found.error / found.bound - 1
        rows.append(Row(case, f"{share:.0%} kept", seconds, error=gap, note="above the bound"))
        worst = max(worst, gap)
    return rows, [Claim(case, "error above the least possible", worst, 1e-3, False)]


def run(quick: bool) -> Report:
    """Return all rows and the claims on them."""
    sizes = [(1024, 64)] if quick else [(2048, 128), (4096, 256)]
    cases = [("Gaussian", *sizes[0]), ("i^-1/2", *sizes[-1])]
    rows, claims = [], []
    for found in [*(one_weight(*case) for case in cases), allocation(4 if quick else 12)]:
        rows += found[0]
        claims += found[1]
    return Report(rows, claims, "error above the best")


if __name__ == "__main__":
    raise SystemExit(main("compress", run))
