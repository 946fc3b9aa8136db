"""What the first call takes, in a process that has compiled nothing yet.

    python -m benchmarks.firstcall [--quick]

Tracing, compiling and one run of a program of 1000 x 600, k = 20, and the run that follows. The
number of equations does not depend on the shape (tests/test_lowering.py). Run nothing else beside
it.
"""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp

import jaxsvd

from .alone import alone
from .measure import Claim, Report, Row, first_call, main

M, N, K = 1000, 600, 20
BAR = 2.0


def loss_of(factors: Callable) -> Callable:
    """Return the gradient of a loss of the leading vectors and all values."""

    def loss(a):
        U, S, Vh = factors(a)
        return jnp.sum(U[:, 0] ** 4) + jnp.sum(S**2) + jnp.sum(Vh[0] ** 4)

    return jax.grad(loss)


def full(a):
    return jaxsvd.svd(a, full_matrices=False)


def truncated(a):
    return jaxsvd.truncated_svd(a, K)


def theirs(a):
    return jnp.linalg.svd(a, full_matrices=False)


OURS = {
    "jaxsvd.svd": full,
    "jaxsvd.svd, gradient": loss_of(full),
    "jaxsvd.truncated_svd": truncated,
    "jaxsvd.truncated_svd, gradient": loss_of(truncated),
}
PEERS = {"jnp.linalg.svd": theirs, "jnp.linalg.svd, gradient": loss_of(theirs)}


def spent(name: str) -> tuple[float, float]:
    """Return the seconds of the first call and of the second."""
    a = jax.random.normal(jax.random.key(0), (M, N), jnp.float32)
    function = jax.jit((OURS | PEERS)[name])
    jax.block_until_ready(a)
    return tuple(first_call(lambda: function(a))[1] for _ in range(2))


def run(quick: bool) -> Report:
    """Return the medians of five processes each; quick takes one, of this library's alone."""
    case = f"{M} x {N}, k={K}"
    rows, claims = [], []
    for name in OURS if quick else OURS | PEERS:
        times = [
            alone(spent, name, JAX_ENABLE_COMPILATION_CACHE="false")
            for _ in range(1 if quick else 5)
        ]
        first, second = (statistics.median(t) for t in zip(*times, strict=True))
        rows.append(Row(case, name, second, compile=first - second))
        if name in OURS:
            claims.append(Claim(case, f"first call of {name}, s", first, BAR, at_least=False))
    return Report(rows, claims)


if __name__ == "__main__":
    raise SystemExit(main("firstcall", run))
