"""Ten thousand optimisation steps through each primitive, on matrices that drift across ties.

    python -m benchmarks.longrun [--steps N] [--only WORD ...]

Gradient descent X <- X - grad |g(X) - g(T)|^2 / 4, or another loss of the difference, follows a
target T whose singular values cross one another and vanish and come back, every hundredth step
exactly equal or zero; in the last tenth the target stands still, with a tie and two zeros, and X
must arrive there. Counted or measured: numbers that are not finite, traces of the program, arrays
alive, and resident memory.
"""

import argparse
import functools
import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsvd
from jaxsvd import linalg

from .measure import status
from .trials import Row, judge

K = 3
SMALL, LARGE = (8, 6), (120, 100)  # the large one is for what iterates
CALLS = 50  # of the program; each makes a fiftieth of the steps
KEY = jax.random.key(0)

# Steps have a length of 1/2. Float32 through raw vectors: two values nearer than eps^(3/4) count as
# tied, and what X is wrong by between them is no longer seen, nor what is below a few eps in the
# null space; so X arrives to eps^(3/4) of T, and smooth functions of it to rounding.
RATE = 0.5
ARRIVED = float(jnp.finfo(jnp.float32).eps) ** 0.75
BAR = 10.0


@functools.cache
def bases(m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return six orthonormal columns of length m and six of length n."""
    rng = np.random.default_rng(m)
    pair = (np.linalg.qr(rng.standard_normal((rows, 2 * K)))[0] for rows in (m, n))
    return tuple(Q.astype(np.float32) for Q in pair)


def values(t: jax.Array, last: jax.Array) -> jax.Array:
    """Return the singular values of the target at step t: three from 1 to 3, three from 0 to 1/2.

    The gap behind the third, where truncation cuts, stays open; within both groups all cross.
    """
    speed = jnp.asarray([0.011, 0.017, 0.007, 0.013, 0.019, 0.005], jnp.float32)
    wave = jnp.cos(speed * t.astype(jnp.float32))
    drifting = jnp.where(jnp.arange(2 * K) < K, 2 + wave, 0.25 * (1 + wave))
    special = jnp.asarray([2, 2, 2, 0.25, 0, 0], jnp.float32)
    final = jnp.asarray([2, 2, 1, 0.25, 0, 0], jnp.float32)
    return jnp.where(t >= last, final, jnp.where(t % 100 == 0, special, drifting))


def target(shape: tuple[int, int], t: jax.Array, last: jax.Array) -> jax.Array:
    U, V = bases(*shape)
    return jnp.matmul(jnp.asarray(U) * values(t, last)[None], jnp.asarray(V).T)


def symmetric_target(shape: tuple[int, int], t: jax.Array, last: jax.Array) -> jax.Array:
    """Return a symmetric target: three eigenvalues are above 1, the others change sign."""
    w = values(t, last)
    w = jnp.where(jnp.arange(2 * K) < K, w, w - 0.25)
    V = jnp.asarray(bases(*shape)[1])
    return jnp.matmul(V * w[None], V.T)


def parts(product: Callable) -> Callable:
    """Return the function of X of what a truncation keeps and what it leaves: together all of X."""

    def both(X):
        kept = product(X)
        return jnp.stack([kept, X - kept])

    return both


def rebuilt(result) -> jax.Array:
    U, S, Vh = result
    return (U * S[None, :]) @ Vh


def rebuilt_symmetric(result) -> jax.Array:
    w, Q = result
    return (Q * w[None, :]) @ Q.T


def cored(result) -> jax.Array:
    U, C, Vh = result
    return U @ C @ Vh


def wavy(s: jax.Array) -> jax.Array:
    """Return an odd function with slopes from 0.7 to 1.3."""
    return s + 0.3 * jnp.sin(s)


def log_cosh(s: jax.Array) -> jax.Array:
    """Return s^2/2 for small s and |s| - log 2 for large ones."""
    return jnp.logaddexp(s, -s) - np.float32(np.log(2))


def squares(D: jax.Array) -> jax.Array:
    return jnp.sum(D**2) / 2


class Run(NamedTuple):
    """A function of X to fit.

    Attributes:
        function: g; X arrives where g(X) = g(T).
        symmetric: whether X is.
        loss: of g(X) - g(T).
        compare: what of X is determined, in NumPy; default all of it.
        shape: of X.
    """

    function: Callable
    symmetric: bool = False
    loss: Callable = squares
    compare: Callable = lambda X: X
    shape: tuple[int, int] = SMALL


def _values(X):
    return np.linalg.svd(X, compute_uv=False)


RUNS = {
    "svd": Run(lambda X: rebuilt(jaxsvd.svd(X, full_matrices=False))),
    "svd, jacobi": Run(lambda X: rebuilt(jaxsvd.svd(X, full_matrices=False, method="jacobi"))),
    "svdvals": Run(jaxsvd.svdvals, compare=_values),
    "spectral_map": Run(lambda X: jaxsvd.spectral_map(wavy, X)),
    "spectral_sum": Run(lambda X: X, loss=lambda D: jaxsvd.spectral_sum(log_cosh, D)),
    "low_rank": Run(parts(lambda X: jaxsvd.low_rank(X, K))),
    "core_svd": Run(parts(lambda X: cored(jaxsvd.core_svd(X, K)))),
    "core_svd, iterative": Run(
        parts(lambda X: cored(jaxsvd.core_svd(X, K, method="subspace"))), shape=LARGE
    ),
    "truncated_svd": Run(
        parts(lambda X: rebuilt(jaxsvd.truncated_svd(X, K, method="krylov"))), shape=LARGE
    ),
    "randomized_svd": Run(
        parts(lambda X: rebuilt(jaxsvd.randomized_svd(KEY, X, K, oversampling=3)))
    ),
    "polar": Run(lambda X: linalg.polar(X).P, compare=lambda X: X.T @ X),
    "eigh": Run(lambda X: rebuilt_symmetric(jaxsvd.eigh(X)), symmetric=True),
    "hermitian_map": Run(lambda X: jaxsvd.hermitian_map(wavy, X), symmetric=True),
    "hermitian_sum": Run(
        lambda X: X, symmetric=True, loss=lambda D: jaxsvd.hermitian_sum(log_cosh, D)
    ),
    "core_eigh": Run(
        parts(lambda X: (lambda r: r.Q @ r.C @ r.Q.T)(jaxsvd.core_eigh(X, K))), symmetric=True
    ),
    "truncated_eigh": Run(
        parts(lambda X: rebuilt_symmetric(jaxsvd.truncated_eigh(X, K, method="krylov"))),
        symmetric=True,
        shape=LARGE,
    ),
}


class Outcome(NamedTuple):
    """What a run left.

    Attributes:
        steps: how many there were.
        distance: of X from the target at the end, relative to its largest value.
        finite: whether every step was.
        traces: how often the program was traced.
        arrays: alive at the end, more than after the first call.
        memory: bytes of resident memory added since the first tenth of the calls.
        seconds: of all.
    """

    steps: int
    distance: float
    finite: bool
    traces: int
    arrays: int
    memory: int
    seconds: float


def follow(run: Run, steps: int) -> Outcome:
    """Return what became of gradient descent along the drifting target."""
    start = time.perf_counter()
    traces = 0
    goal = functools.partial(symmetric_target if run.symmetric else target, run.shape)
    each = steps // CALLS
    last = steps - max(100, steps // 10)

    def loss(X, T):
        return run.loss(run.function(X) - run.function(T))

    @jax.jit
    def several(X, finite, t, last):
        nonlocal traces
        traces += 1

        def step(i, carry):
            X, finite = carry
            gradient = jax.grad(loss)(X, goal(t + i, last))
            if run.symmetric:
                gradient = (gradient + gradient.T) / 2
            X = X - RATE * gradient
            return X, finite & jnp.all(jnp.isfinite(X))

        return lax.fori_loop(0, each, step, (X, finite))

    def number(x):
        return jnp.asarray(x, jnp.int32)

    X, finite = goal(number(1), number(last)), jnp.asarray(True)
    arrays = memory = 0
    for call in range(CALLS):
        X, finite = jax.block_until_ready(several(X, finite, number(call * each), number(last)))
        if call in (1, CALLS - 1):  # what the last call left more than the second
            arrays = len(jax.live_arrays()) - arrays
        if call == CALLS // 10:
            gc.collect()
            memory = status("VmRSS:")
    gc.collect()
    T = np.asarray(goal(number(steps), number(last)), np.float64)
    found, exact = run.compare(np.asarray(X, np.float64)), run.compare(T)
    distance = float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))
    return Outcome(
        each * CALLS,
        distance,
        bool(finite),
        traces,
        arrays,
        status("VmRSS:") - memory,
        time.perf_counter() - start,
    )


# Resident memory moves by less than this for other reasons.
SLACK = 8 << 20


def faults(outcome: Outcome) -> list[str]:
    """Return what is wrong with a run, apart from where it arrived."""
    found = []
    if not outcome.finite:
        found.append("a number that is not finite")
    if outcome.traces != 1:
        found.append(f"{outcome.traces} traces")
    if outcome.arrays > 0:
        found.append(f"{outcome.arrays} arrays more")
    if outcome.memory > SLACK:
        found.append(f"{outcome.memory >> 20} MB more")
    return found


def ratio(outcome: Outcome) -> float:
    """Return the distance in units of eps^(3/4); raise if something else is wrong."""
    if found := faults(outcome):
        raise RuntimeError(", ".join(found))
    return outcome.distance / ARRIVED


def long_runs(quick: bool) -> Iterator[Row]:
    """Yield the row of `benchmarks.trust`."""
    steps = 500 if quick else 10_000
    cases = [(name, lambda run=run: ratio(follow(run, steps))) for name, run in RUNS.items()]
    yield judge(
        f"{steps:,} optimisation steps through each primitive",
        cases,
        BAR,
        note="distance from a target with ties and zeros, over eps^(3/4)",
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.longrun")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="runs with one of these words")
    args = parser.parse_args(argv)
    wrong = 0
    for name, run in RUNS.items():
        if args.only and not any(word in name for word in args.only):
            continue
        o = follow(run, args.steps)
        found = faults(o) + (["did not arrive"] if not o.distance < BAR * ARRIVED else [])
        wrong += bool(found)
        print(
            f"{name:22} {o.steps} steps  {o.distance:.1e}  {o.traces} trace(s)  "
            f"{o.memory / 2**20:+.1f} MB  {o.seconds:5.1f} s  {', '.join(found)}",
            flush=True,
        )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
