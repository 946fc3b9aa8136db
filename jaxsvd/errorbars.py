"""`value_and_grad_with_error`: a gradient together with the error it is likely to have."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import _checks, _tolerances
from .primitives.disturbance import Disturbance, disturbing

# (rounding, ties, zeros) of the factors that the gradient is evaluated with: random ones; the best
# ones; ties and zeros split; and, only where that made a difference, ties by themselves to both
# sides, once and twice as far, and zeros alike. Three random ones: of 20000 cases none came out 100
# times too small, with two of them some did.
RANDOM = 3
TIES = ((0, 1, 0), (0, -1, 0), (0, 2, 0), (0, -2, 0))
ZEROS = ((0, 0, 1), (0, 0, -1), (0, 0, 2), (0, 0, -2))
CASES = ((1, 0, 0),) * RANDOM + ((0, 0, 0), (0, 1, 1)) + TIES + ZEROS
BEST, SPLIT = RANDOM, RANDOM + 1

# A change beyond it, in eps, is more than other factors of the same matrix make.
DIFFERS = 1e3


def _norm(x: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(x), initial=0)
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.linalg.norm((x / unit.astype(x.dtype)).ravel())


def _estimate(gradient: jax.Array, changes: jax.Array) -> jax.Array:
    """Return the relative error of one array from what the disturbances changed, (cases, ...)."""
    eps = _tolerances.eps(gradient.dtype)
    size = _norm(gradient)

    def relative(change):
        change = _norm(change)
        return jnp.where(change == 0, 0, change / size)

    # What is known of the error: of an iteration, how far it was from convergence.
    known, changes = changes[BEST], changes - changes[BEST : BEST + 1]
    # Both gradients have an error of rounding, and independent ones: sqrt(2) times that of one.
    rounding = relative(changes[:RANDOM]) / (2 * RANDOM) ** 0.5

    # What is left at distance 0, and the change of sign, of a split to both sides.
    def even_and_odd(up, down, up2, down2):
        even, even2 = (up + down) / 2, (up2 + down2) / 2
        return relative((4 * even - even2) / 3), relative((up - down) / 2)

    ties, odd = even_and_odd(*changes[SPLIT + 1 : SPLIT + 5])
    zeros, _ = even_and_odd(*changes[SPLIT + 5 :])
    negligible = 30 * eps**0.8
    ties = jnp.where(ties < negligible, 0, ties)
    # A gradient that grows as the tie is approached from either side has no limit.
    ties = jnp.where(odd > 1, odd, ties)
    # A loss with a threshold of its own, such as 1/s for s > tol, means the zeros it drops.
    zeros = jnp.where((zeros < negligible) | (zeros > 10), 0, zeros)
    # The last one is the rounding of the result itself.
    parts = relative(known), rounding, ties, zeros, jnp.asarray(0.2 * eps, size.dtype)
    return jnp.linalg.norm(jnp.stack(parts))


def value_and_grad_with_error(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., tuple[Any, Any, Any]]:
    """Return a function that evaluates fun, its gradient, and the gradient's relative error.

        error ~ |gradient - exact gradient|_F / |gradient|_F,      for each array of the gradient

    by evaluating the gradient again with the factors that each function of this library inside fun
    might as well have returned: those of A + E, E random of the size of its measured residual
    A - U S V^H; k triplets of an iteration after one more Newton step; tied values split, where the
    rule of raw triplets drops terms. The cotangents of fun decide what that does, so a small gap
    that the loss does not see costs nothing, and one that it does costs eps s_1 / gap.

    Measured (`benchmarks.errorbars`) on random matrices with near ties, ties, small values and
    zeros, and on unconverged triplets: within a factor of 10 of the true error in 99 % of the
    cases. An estimate of 1 or more says that no digit is right. The
    gradient meant is that of fun as it is defined: with svd(A) at an exact tie that of the smooth
    function, if there is one; with a rank tolerance that of the function which drops what is below.
    Errors from elsewhere (sums that cancel outside of the library's functions) do not count.

    Cost: five gradients more; thirteen where the loss depends on tied values of raw triplets.
    Compile time twice that of `jax.value_and_grad`.

    Args:
        fun: function of arrays that returns a real scalar.
        argnums: the arguments to differentiate by, as in `jax.value_and_grad`.
        has_aux: fun returns (value, auxiliary data).

    Returns:
        A function of the same arguments that returns (value, gradient, error), the value as
        (value, aux) with ``has_aux``; ``error`` is a pytree like the gradient with a real scalar
        for each array. To be wrapped in `jax.jit` like any other.

    Raises:
        TypeError: ``fun`` is not a function.

    Example:
        A loss of one singular vector next to another, in single precision:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> def loss(A):
        ...     return jaxsvd.svd(A).U[0, 0] ** 2
        >>> step = jax.jit(jaxsvd.value_and_grad_with_error(loss))
        >>> for gap in 1.0, 1e-4:
        ...     A = jnp.array([[2.0, 1e-3, 0.1], [0.0, 2 - gap, 0.2], [0.1, 0.0, 0.5]], jnp.float32)
        ...     value, gradient, error = step(A)
        ...     print(bool(error < 1e-5), bool(error > 1e-5))
        True False
        False True

    References:
        `jaxsvd.primitives.disturbance`; Parker (1997), "Monte Carlo arithmetic"; Stewart and Sun
        (1990), "Matrix Perturbation Theory", section IV.
    """
    name = "value_and_grad_with_error"
    _checks.function(name, "fun", fun)
    has_aux = _checks.flag(name, "has_aux", has_aux)
    evaluate = jax.value_and_grad(fun, argnums, has_aux)

    @functools.wraps(fun)
    def with_error(*args, **kwargs):
        value, gradient = evaluate(*args, **kwargs)

        def change(case):
            with disturbing(Disturbance(*case)):
                _, other = evaluate(*args, **kwargs)
            return jax.tree.map(jnp.subtract, other, gradient)

        def differ(one, other):
            leaves = (jax.tree.leaves(tree) for tree in (one, other, gradient))
            return jnp.any(
                jnp.stack(
                    [
                        _norm(x - y) > DIFFERS * _tolerances.eps(g.dtype) * _norm(g)
                        for x, y, g in zip(*leaves, strict=True)
                    ]
                )
            )

        def step(state, numbered):
            best, has_ties = state
            number, case = numbered
            run = (number <= SPLIT) | has_ties
            changed = lax.cond(run, change, lambda _: best, case)
            best = jax.tree.map(lambda x, y: jnp.where(number == BEST, x, y), changed, best)
            has_ties = has_ties | ((number == SPLIT) & differ(changed, best))
            return (best, has_ties), changed

        if not jax.tree.leaves(gradient):
            return value, gradient, gradient
        one, other = jax.random.split(jax.random.key(0))
        keys = jnp.stack([*jax.random.split(one, RANDOM), *[other] * (len(CASES) - RANDOM)])
        factors = jnp.array(CASES, jnp.float32)
        cases = (keys, *jnp.moveaxis(factors, 1, 0))
        start = jax.tree.map(jnp.zeros_like, gradient), jnp.array(False)
        _, changes = lax.scan(step, start, (jnp.arange(len(CASES)), cases))
        return value, gradient, jax.tree.map(_estimate, gradient, changes)

    return with_error
