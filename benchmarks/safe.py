"""What `jaxsvd.safe` costs a function that is only evaluated, and what its derivatives cost.

    python -m benchmarks.safe [--quick]

The forward pass of jitted safe(fn) beside that of jitted fn: the same program. Gradients beside
those of fn at distinct values, where JAX has them. Functions of JAX's own libraries and patterns
that are common, from a batch of 3 x 3 matrices to 500 x 500. ``error`` is the largest difference
of the values: they must be the same bits.
"""

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax import lax

from jaxsvd import safe

from .measure import Claim, Report, Row, main, medians

ROUNDS = 5


def reconstruct(A):
    """Return a soft threshold of the singular values."""
    U, s, Vh = jnp.linalg.svd(A, full_matrices=False)
    return (U * jax.nn.relu(s - 0.1)[..., None, :]) @ Vh


def inverse_root(A):
    """Return (A A^T + I)^(-1/2)."""
    w, Q = jnp.linalg.eigh(A @ A.mT + jnp.eye(A.shape[-2]))
    return (Q / jnp.sqrt(w)[..., None, :]) @ Q.mT


def iterated(A):
    """Return ten steps of a loop around an SVD."""
    return lax.scan(lambda A, _: (reconstruct(A), None), A, None, length=10)[0]


def mlp(A):
    """Return what holds no decomposition."""
    return jnp.tanh(A @ jnp.tanh(A @ A))


def cases(quick: bool):
    """Return functions and the shapes of their arguments."""
    n, batch = (60, 200) if quick else (300, 5000)
    return {
        f"soft threshold {n} x {n}": (reconstruct, (n, n)),
        f"soft threshold {batch} x 3 x 3": (reconstruct, (batch, 3, 3)),
        f"inverse root {n} x {n}": (inverse_root, (n, n)),
        f"jax.scipy.linalg.polar {n} x {n}": (lambda A: jsl.polar(A, method="svd"), (n, n)),
        f"jnp.linalg.norm nuc {n} x {n}": (lambda A: jnp.linalg.norm(A, "nuc"), (n, n)),
        f"jnp.linalg.lstsq {n} x {n // 2}": (
            lambda A: jnp.linalg.lstsq(A, A[:, 0])[0],
            (n, n // 2),
        ),
        f"scan of ten, {n // 3} x {n // 3}": (iterated, (n // 3, n // 3)),
        f"no decomposition, {2 * n} x {2 * n}": (mlp, (2 * n, 2 * n)),
    }


def run(quick: bool) -> Report:
    """Return forward and gradient times with and without `safe`, and the claims on them."""
    rows, claims = [], []
    for case, (function, shape) in cases(quick).items():
        A = jnp.asarray(np.random.default_rng(0).standard_normal(shape).astype(np.float32))

        def loss(A, function=function):
            return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(function(A)))

        programs = {"fn": jax.jit(function), "safe(fn)": jax.jit(safe(function))}
        one, two = (jax.tree.leaves(program(A)) for program in programs.values())
        off = max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(one, two, strict=True))
        gradients = {"fn": jax.jit(jax.grad(loss)), "safe(fn)": jax.jit(jax.grad(safe(loss)))}
        ratios = []
        # The median over rounds of a ratio: each round is short, and the machine drifts.
        for _ in range(ROUNDS):
            calls = {name: functools.partial(p, A) for name, p in programs.items()}
            seconds = medians(calls, repeats=9 if quick else 15)
            ratios.append(seconds["safe(fn)"] / seconds["fn"])
        calls = {name: functools.partial(p, A) for name, p in gradients.items()}
        backward = medians(calls, repeats=5)
        for name in programs:
            rows.append(Row(case, name, seconds[name], error=off if name != "fn" else None))
            rows.append(Row(case, f"gradient of {name}", backward[name]))
        claims.append(Claim(case, "forward by that of fn", float(np.median(ratios)), 1.05, False))
        claims.append(Claim(case, "difference of the values", off, 0.0, False))
    return Report(rows, claims, "difference of the values")


if __name__ == "__main__":
    raise SystemExit(main("safe", run))
