"""s_1 of any linear map: exact, bounded from above, or carried through a training loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from .. import _checks, track
from ..operators.adapters import as_operator
from ..operators.convolution import Convolution
from ..primitives.batching import over_leading_axes, vmapped
from ..primitives.core import core_svd
from .bounds import gram_bound
from .convolution import circular_norm, convolution_bound, ring
from .sums import dense

METHODS = {"auto": "auto", "exact": "full", "krylov": "krylov"}

# Columns that the tracker carries beyond the first: values close to s_1 slow it down. On a Gaussian
# matrix 1024 x 1024, whose values crowd at the top, s_1 is off by 0.7, 0.4, 0.2, 0.2 % after 40
# steps with 0, 1, 3, 7 of them.
EXTRA = 3


def spectral(a: Any, *, method: str = "auto") -> jax.Array:
    """Return the spectral norm s_1 = max |A x| / |x| of a matrix or of any linear map.

        d s_1 = Re u_1^H dA v_1

    at the converged pair, never through the iterations, and to second order; where s_1 is tied, a
    subgradient. Of an `operators.Convolution` it is the norm of the layer, of an
    `operators.Jacobian` the local Lipschitz constant of a function.

    Cost: one SVD up to a shorter side of 256, otherwise some tens of products with A. A circular
    convolution costs a small SVD for each frequency.

    Args:
        a: array (..., m, n), real or complex; sparse matrix or operator.
        method: "exact" for the full SVD (of a circular convolution: of its symbol), "krylov" for
            products with A, "auto" for the first where it is cheap.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: unknown method; ``a`` has fewer than two axes.

    Example:
        The norm of a layer, which is not that of its kernel as a matrix:

        >>> import jax.numpy as jnp, jaxsvd
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> layer = jaxsvd.operators.Convolution(kernel, (8, 8, 1), padding="CIRCULAR")
        >>> print(jaxsvd.norms.spectral(layer), jaxsvd.norms.spectral(kernel.reshape(9, 1)))
        9.0 3.0

    References:
        Magnus (1985), "On differentiating eigenvalues and eigenvectors"; Sedghi, Gupta and Long
        (2019), theorem 6.
    """
    method = _checks.choice("spectral", "method", method, tuple(METHODS))
    if isinstance(a, Convolution) and method != "krylov" and ring(a)[2]:
        return circular_norm(a)
    return jnp.real(core_svd(a, 1, method=METHODS[method]).C[..., 0, 0])


def spectral_bound(a: Any, steps: int = 6) -> jax.Array:
    """Return a number that s_1 never exceeds, by Gram iteration: certified in floating point too.

        s_1 <= |G_T|_F^(1/2^T),   G_0 = A,   G_{t+1} = G_t^H G_t

    In exact arithmetic at most r^(1/2^(T+1)) times s_1 for rank r (1.06 for r = 1000, T = 6). Each
    Gram matrix is rounded upward by gamma_q |G|_F^2, q about twice the root of the length of its
    sums, and each root by 4 eps. Differentiable, through the products. A convolution is bounded
    by the circular one that contains it, frequency by frequency.

    Cost: one product of the longer side and T - 1 of the shorter side cubed; no decomposition.

    Args:
        a: array (..., m, n), real or complex; `operators.Convolution`; another operator is
            multiplied out.
        steps: static int T >= 0; 0 gives the Frobenius norm.

    Returns:
        Array (...,), real; of half precision in float32, which rounding down would not keep.

    Raises:
        TypeError: ``a`` is not a matrix in any form, ``steps`` not a static int.
        ValueError: ``steps`` out of range; ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 2.0]))
        >>> bound = jaxsvd.norms.spectral_bound(A, 4)
        >>> bool(3 <= bound < 3.0001)
        True

    References:
        Delattre, Barthelemy, Araujo and Allauzen (2023), algorithm 1 and theorem 1; the error
        terms in `jaxsvd.norms.bounds`.
    """
    name = "spectral_bound"
    steps = _checks.static_int(name, "steps", steps, 0, 64)
    if isinstance(a, Convolution):
        return convolution_bound(a, steps)
    return _bound(dense(name, a), steps)


@functools.partial(jax.jit, static_argnames="steps")
def _bound(a: jax.Array, steps: int) -> jax.Array:
    return over_leading_axes(lambda a: gram_bound(a, steps), _checks.working(a))


def spectral_init(a: Any, *, extra: int = EXTRA, key: int | None = None) -> track.TrackState:
    """Return the state of `spectral_step` before the first step.

    Args:
        a: array (..., m, n), sparse matrix or operator, or a jax.ShapeDtypeStruct: its values do
            not matter.
        extra: static; columns carried beyond the first. More of them, faster convergence.
        key: static int that seeds the start.

    Returns:
        The state of `jaxsvd.track`, with the leading axes of ``a``.

    Raises:
        TypeError: ``a`` is not a matrix in any form.
        ValueError: ``a`` has fewer than two axes.
    """
    a = jnp.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else a
    a, axes = _stack("spectral_init", a)
    return vmapped(lambda a: track.init(a, 1, extra=extra, key=key), axes)(a)


def spectral_step(a: Any, state: track.TrackState) -> tuple[jax.Array, track.TrackState]:
    """Return s_1 as the tracker knows it after one more step, and the next state.

    Of a matrix that changes little between steps, as a weight in training does. Never above s_1
    (but for rounding), and below it by less with every step. Nothing is mutated. The derivative is
    u_1 v_1^H of the tracked pair; none reaches the state.

    Cost: two products of A with 1 + extra columns.

    Args:
        a: the matrix now, of the same shape.
        state: from `spectral_init` or the last step.

    Returns:
        (array (...,), real; the next state).

    Raises:
        ValueError: the state is of a matrix of another shape.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> state = jaxsvd.norms.spectral_init(A, extra=0)
        >>> for _ in range(12):  # the training loop
        ...     sigma, state = jaxsvd.norms.spectral_step(A, state)
        >>> print(sigma)
        3.0000

    References:
        Miyato, Kataoka, Koyama and Yoshida (2018), algorithm 1, there with one column.
    """
    name = "spectral_step"
    a, axes = _stack(name, a)
    if not isinstance(state, track.TrackState):
        raise TypeError(
            f"{name}: `state` must come from spectral_init, got {_checks.describe(state)}"
        )
    ends = (state.basis.U.shape, state.basis.V.shape)
    expected = (*ends[0][:-2], ends[0][-2], ends[1][-2])
    if len(ends[0]) != axes + 2 or tuple(a.shape) != expected:
        raise ValueError(
            f"{name}: `a` must have the shape of the state, {expected}, got {tuple(a.shape)}"
        )

    def one(a, state):
        state, result, _ = track.step(a, state)
        return result.S[0], state

    return vmapped(one, axes)(a, state)


def _stack(name: str, a: Any) -> tuple[Any, int]:
    """Return a matrix in any form and the number of its leading axes."""
    if hasattr(a, "ndim") and not hasattr(a, "indices"):
        a = _checks.matrix(name, a)
        return _checks.working(a), a.ndim - 2
    return as_operator(a, name=name), 0
