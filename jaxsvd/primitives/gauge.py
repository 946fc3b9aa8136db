"""`gauge_check`: notice a loss whose gradient through singular vectors does not exist."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks, _tolerances
from .._types import SVDResult
from ..rules.gauge import GaugeDependence, gauge_dependence
from .batching import vmapped
from .ruled import ruled

Look = Callable[[SVDResult, SVDResult], SVDResult]


@ruled(static=(1,))
def watch(result: SVDResult, look: Look) -> SVDResult:
    """Return the result; in reverse mode its cotangents pass through look(result, cotangent).

    Reverse mode alone has cotangents, and only a rule for tangents survives every transformation:
    the tangent goes through a linear solve with the identity, whose transpose is ``look``.
    """
    del look
    return result


@watch.defjvp
def _watch_jvp(look, primals, tangents):
    (result,), (tangent,) = primals, tangents
    result = watch(result, look)

    def pack(x: SVDResult) -> jax.Array:  # one array: what custom_linear_solve wants
        return jnp.concatenate([y.astype(x.U.dtype).ravel() for y in x])

    def unpack(flat: jax.Array) -> SVDResult:
        ends = (result.U.size, result.U.size + result.S.size)
        U, S, Vh = jnp.split(flat, ends)
        S = S.real if jnp.iscomplexobj(S) else S
        return SVDResult(*(x.reshape(y.shape) for x, y in zip((U, S, Vh), result, strict=True)))

    def looking(_, flat):
        return pack(look(lax.stop_gradient(result), unpack(flat)))

    flat = lax.custom_linear_solve(
        lambda x: x, pack(tangent), solve=lambda _, x: x, transpose_solve=looking
    )
    return result, unpack(flat)


class GaugeError(ValueError):
    """A loss depends on a choice of singular vectors that the matrix does not determine."""


class GaugeWarning(UserWarning):
    """The same, as a warning."""


def describe(S: np.ndarray, dependence: GaugeDependence) -> str:
    """Return one sentence on the worst pair of columns: where it is, how large, what to do."""
    pair, left, right, share = dependence
    worst = max((pair, left, right), key=lambda x: x.max(initial=0))
    i, j = np.unravel_index(np.argmax(worst), worst.shape)
    size = worst[i, j]
    if worst is left:
        factor, place = "U", "the null space of A^H"
    elif worst is right:
        factor, place = "Vh", "the null space of A"
    else:
        of_U = share[i, j]
        factor = "U" if of_U > 0.99 else "Vh" if of_U < 0.01 else "U and Vh"
        place = f"singular values {S[i]:.8g} and {S[j]:.8g}"
    columns = f"phase of column {i}" if i == j else f"basis of columns {i} and {j}"
    return (
        f"gauge_check: the loss depends on the {columns} of {factor} ({place}), which the matrix "
        f"does not determine: {size:.1e} of its cotangent; write it with core_svd or "
        "spectral_map, or in terms of projectors"
    )


def _report(on: str, S: Any, *arrays: Any) -> None:
    # The decision stands here: under vmap a lax.cond would call back for every lane.
    values: list[Any] = [np.asarray(x) for x in arrays]
    dependence = GaugeDependence(*values)
    size = max(x.max(initial=0) for x in dependence[:3])
    if not size > _tolerances.gauge_tol(S.dtype):
        return
    sentence = describe(np.asarray(S), dependence)
    if on == "raise":
        raise GaugeError(sentence)
    warnings.warn(sentence, GaugeWarning, stacklevel=2)


def _policy(on: str) -> Look:
    def look(result, cotangent):
        dependence = gauge_dependence(result, cotangent)
        if on == "nan":
            bad = dependence.size() > _tolerances.gauge_tol(result.S.dtype)
            return SVDResult(*(jnp.where(bad, jnp.nan, x) for x in cotangent))
        jax.debug.callback(functools.partial(_report, on), result.S, *dependence)
        return cotangent

    return look


_POLICIES = {on: _policy(on) for on in ("warn", "nan", "raise")}


def gauge_check(result: Any, on: str = "warn") -> SVDResult:
    """Return an SVD unchanged; in reverse mode tell when the loss depends on its gauge.

    At tied singular values the matrix determines a subspace and no vectors; at a zero one it
    determines even less; the phase of a complex pair is always free. A loss that depends on such a
    choice has no derivative, and the finite number that comes out of any rule is meaningless. To
    first order it depends by (a + b)_ij with a = skew(U^H gU), b = skew(V^H gV).

    Put it between the SVD and the loss: ``U, S, Vh = gauge_check(svd(A))``. It is silent for a
    gauge-free loss, in forward mode, and for the signs of real vectors (a discrete choice). Made
    for gradients; in a Hessian the tangents of cotangents would be judged too.

    Cost: two products of (m + n) k^2 in the backward pass, none in the forward pass.

    Args:
        result: SVDResult of arrays (..., m, k), (..., k), (..., k, n), thin or full.
        on: "warn" emits a GaugeWarning that names the factor, the pair of columns and the size of
            the offending part; "nan" turns the gradient into NaN; "raise" raises GaugeError (from
            compiled code JAX wraps it in its own runtime error, message included).

    Returns:
        The same SVDResult.

    Raises:
        TypeError: ``result`` is not a triple of arrays.
        ValueError: unknown ``on``.

    Example:
        >>> import warnings, jax, jax.numpy as jnp, jaxsvd
        >>> def loss(A):
        ...     U, S, Vh = jaxsvd.gauge_check(jaxsvd.svd(A))
        ...     return U[0, 0] + 2 * U[1, 0]  # one vector of a tied pair
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     gradient = jax.grad(loss)(jnp.array([[1.2, -1.6, 0.0], [1.6, 1.2, 0.0]]))
        ...     jax.effects_barrier()
        >>> print(str(caught[0].message)[:72])
        gauge_check: the loss depends on the basis of columns 0 and 1 of U (sing

    References:
        `jaxsvd.rules.gauge`; MatrixAlgebraKit.jl warns of the same part.
    """
    _checks.choice("gauge_check", "on", on, tuple(_POLICIES))
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError(
            "gauge_check: `result` must be the triple (U, S, Vh) that svd returns, got "
            f"{_checks.describe(result)}"
        )
    result = SVDResult(*(_checks.array("gauge_check", x, "result") for x in result))
    if min(result.S.shape[-1:]) == 0:
        return result
    return vmapped(lambda x: watch(x, _POLICIES[on]), result.S.ndim - 1)(result)
