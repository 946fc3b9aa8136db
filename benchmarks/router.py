"""Where one algorithm overtakes another: the measurements behind `algorithms.router`.

    python -m benchmarks.router [--quick]

Each row is a rival's time over the platform's own (batches: one-sided Jacobi; tall matrices:
CholeskyQR first) or over the full SVD (top 10: block Krylov to 1e-5). The claims are that the table
chooses the faster one, or loses less than a fifth where it does not.
"""

import functools

import jax
import jax.numpy as jnp

import jaxsvd
from jaxsvd.algorithms import dense
from jaxsvd.algorithms.jacobi import jacobi
from jaxsvd.algorithms.router import Request, route
from jaxsvd.algorithms.tall import tall
from jaxsvd.primitives.truncated import choose_method

from .measure import Claim, Report, Row, main, medians

LOSS = 0.8

SIZES = ((2, 2), (3, 3), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12), (16, 16), (8, 3), (16, 4))
COUNTS = (4, 16, 64, 256, 1024, 4096)
TALL = ((512, 128), (2048, 512), (2048, 128), (8192, 128), (1024, 16), (20_000, 16), (20_000, 50))
TOP = ((256, 128), (400, 256), (600, 384), (1000, 512))

ALGORITHMS = {
    "lapack": functools.partial(dense.lapack, full_matrices=False),
    "jacobi": functools.partial(jacobi, full_matrices=False),
    "tall": lambda a: tall(a, lambda R: dense.lapack(R, False)),
}


def compare(case: str, calls: dict, chosen: str, repeats: int) -> tuple[list[Row], Claim]:
    """Return the rows of two rivals and the claim that the chosen one is no slower."""
    seconds = medians(calls, repeats)
    (rival,) = calls.keys() - {chosen}
    rows = [Row(case, name, s, note="chosen" * (name == chosen)) for name, s in seconds.items()]
    return rows, Claim(case, f"{rival} / {chosen}", seconds[rival] / seconds[chosen], LOSS)


def full_svd(shape: tuple[int, ...], rival: str, repeats: int):
    a = jax.random.normal(jax.random.key(0), shape, jnp.float32)
    calls = {name: functools.partial(jax.jit(ALGORITHMS[name]), a) for name in ("lapack", rival)}
    chosen = route(shape, Request(), jax.default_backend()).name
    chosen = chosen if chosen in calls else "lapack"
    return compare(" x ".join(map(str, shape)), calls, chosen, repeats)


def top(m: int, n: int, repeats: int):
    a = jax.random.normal(jax.random.key(0), (m, n), jnp.float32)
    a = a * jnp.arange(1, n + 1, dtype=jnp.float32)[None, :] ** -0.5
    calls = {
        method: functools.partial(jaxsvd.truncated_svd, a, 10, method=method)
        for method in ("full", "krylov")
    }
    chosen = choose_method("auto", (m, n), 10, 1e-5)
    return compare(f"top 10 of {m} x {n}", calls, chosen, repeats)


def run(quick: bool) -> Report:
    """Return all crossings; quick looks at a few."""
    repeats = 3 if quick else 7
    counts = COUNTS[1::2] if quick else COUNTS
    found = [
        full_svd((count, *size), "jacobi", repeats)
        for size in (SIZES[1:6:2] if quick else SIZES)
        for count in counts
    ]
    found += [full_svd(size, "tall", repeats) for size in (TALL[::3] if quick else TALL)]
    found += [top(*size, repeats) for size in (TOP[:2] if quick else TOP)]
    return Report([row for rows, _ in found for row in rows], [claim for _, claim in found])


if __name__ == "__main__":
    raise SystemExit(main("router", run))
