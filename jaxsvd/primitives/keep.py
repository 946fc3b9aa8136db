"""Calls of custom_jvp functions inside their own rules, such that loops do not lose the rule.

A rule takes the value of its function from the function itself, so that the next derivative meets
the rule again. JAX evaluates the body of a custom_jvp function in place of the function wherever it
evaluates a program in part, "to build linear functions". It does so in `scan`, `map` and
`fori_loop` too, to move what is the same in all steps out of the loop, and there the next
derivative is still to come: `jax.hessian` and grad(grad) of a loop were wrong by 30 % to 100 %,
silently, while jvp(jvp) and grad(jvp) were right (jax 0.10.2).

A linear system is never evaluated in part. So the value F is written as the solution of one, whose
matrix contains the call: with z = (w, y) in one array for each result,

    (w, y - F o w) = (1, 0)      has the solution w = 1, y = F.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def keep_rule(function: Callable[[], Any], like: Any) -> Any:
    """Return function() with a derivative that survives partial evaluation.

    Args:
        function: calls a custom_jvp function with arguments that it closes over.
        like: constants with the shapes and dtypes of the results.
    """

    # Zeros made of x, as in `spectral.protect`; 0 * x would be NaN where x is infinite.
    def nothing(x):
        zero = jnp.zeros((), x.dtype)
        return jnp.where(lax.stop_gradient(x) == 0, zero, zero)

    zeros = jax.tree.map(nothing, like)

    def matvec(z):
        return jax.tree.map(lambda F, z: jnp.stack([z[0], z[1] - F * z[0]]), function(), z)

    def solve(matvec, b):
        part = matvec(jax.tree.map(lambda b: jnp.stack([b[0], 0 * b[1]]), b))
        return jax.tree.map(lambda b, p: jnp.stack([b[0], b[1] - p[1]]), b, part)

    def transpose_solve(vecmat, b):
        part = vecmat(jax.tree.map(lambda b: jnp.stack([0 * b[0], b[1]]), b))
        return jax.tree.map(lambda b, p: jnp.stack([b[0] - p[0], b[1]]), b, part)

    b = jax.tree.map(lambda x: jnp.stack([1 + x, x]), zeros)
    return jax.tree.map(lambda z: z[1], lax.custom_linear_solve(matvec, b, solve, transpose_solve))
