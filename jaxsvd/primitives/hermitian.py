"""`hermitian_map`, `hermitian_sum` and `core_map`: functions of Hermitian matrices.

The mechanism is that of `primitives.spectral`, the divided differences those of `rules.hermitian`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _checks
from ..algorithms import refinement
from ..algorithms.dense import eigenpairs
from ..rules.dense import herm
from ..rules.hermitian import EigenvaluesToThirdOrder, from_triangle
from .disturbance import eigen_numbers
from .spectral import apply, frechet, total


def numbers(a: jax.Array, *, raw: bool = False) -> tuple[jax.Array, jax.Array]:
    """Return eigenvalues, ascending, and eigenvectors of one Hermitian matrix as constants.

    Those of a small matrix in single precision are refined. ``raw`` says that the rule they are for
    drops terms at ties.
    """

    def solve(a):
        w, Q = eigenpairs(a)
        return refinement.refined(a, w, Q) if refinement.wanted(a) else (w, Q)

    a = lax.stop_gradient(a)
    return eigen_numbers(a, solve(a), solve, raw=raw)


def _map(name: str, f: Any, a: jax.Array, near_tie: float | None) -> jax.Array:
    def of_matrix(function, constants, _, a):
        if a.shape[0] == 0:
            return a
        a = herm(a)
        return frechet(EigenvaluesToThirdOrder, function, constants, numbers(a), a, ())

    return apply(name, f, a, near_tie, of_matrix)


def _arguments(name: str, a: Any, symmetrize_input: Any, near_tie: Any):
    a = _checks.square(name, a)
    near_tie = _checks.tolerance(name, "near_tie", near_tie, "the largest eigenvalue")
    # The Hermitian part is taken of the scaled matrix, where it cannot overflow.
    symmetrize = _checks.flag(name, "symmetrize_input", symmetrize_input)
    return a if symmetrize else from_triangle(a), near_tie


def mapped(
    name: str, f: Any, a: Any, symmetrize_input: bool = True, near_tie: float | None = None
) -> jax.Array:
    """Return `hermitian_map` of these arguments, for a function of the given name."""
    a, near_tie = _arguments(name, a, symmetrize_input, near_tie)
    return _map(name, f, a, near_tie)


def hermitian_map(
    f: Callable, a: Any, *, symmetrize_input: bool = True, near_tie: float | None = None
) -> jax.Array:
    """Return f of a Hermitian matrix, Q f(w) Q^H with A = Q diag(w) Q^H, right at every tie.

        dF = Q [f[w_i, w_j] o Q^H dA Q] Q^H,   f[x, y] = (f(x) - f(y))/(x - y), f'(x) at ties

    and divided differences of higher order in the second and third derivative. expm, logm, sqrtm,
    inverse roots A^(-1/p), the positive part, sign and log-Euclidean distances are all this
    function: `jnp.exp`, `jnp.log`, `jnp.sqrt`, `lambda w: w ** (-1 / p)`, ... At equal eigenvalues
    its derivatives are exact in forward and reverse mode and all their combinations up to third
    order, where those through `jnp.linalg.eigh` are NaN. The choice between a quotient and
    quadrature of f' is made for each pair by the smaller estimated error, so f may vary on any
    scale: eigenvalues that spread over many orders of magnitude, or zeros of rounding size.

    Where f has no derivative (sqrt, log or a negative power at w = 0) neither has the map, and
    it gives what f gives there, inf or NaN: add a multiple of I, or use `linalg.whitening`,
    `linalg.pinv`, which drop such eigenvalues.

    Cost: one `eigh`; a derivative four products of n^3; a second derivative n tables of n x n, a
    third one n^2.

    Args:
        f: elementwise function of an array of eigenvalues, as in `spectral_map`; it may close over
            real arrays and tracers, which are differentiated.
        a: Hermitian array (..., n, n), dtypes as in `svd`.
        symmetrize_input: use (A + A^H)/2, as `jnp.linalg.eigh` does; False takes the lower triangle
            and the real part of the diagonal, and derivatives are with respect to those.
        near_tie: gap relative to the largest |w| above which no quadrature is used; default
            eps^(1/5)/2. Take sqrt(eps) for f with kinks.

    Returns:
        Array (..., n, n), Hermitian.

    Raises:
        TypeError: f is not a function or changes the dtype; ``a`` is not an array.
        ValueError: f is not elementwise; ``a`` is not square; a derivative of fourth order.

    Example:
        The derivative of the square root at the identity, all of whose eigenvalues are tied:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> sqrtm = lambda A: jaxsvd.hermitian_map(jnp.sqrt, A)
        >>> dA = jnp.array([[1.0, 2.0], [2.0, 0.0]])
        >>> print(jnp.round(jax.jvp(sqrtm, (jnp.eye(2),), (dA,))[1], 4))
        [[0.5 1. ]
         [1.  0. ]]

    References:
        Higham (2008), "Functions of Matrices", theorem 3.11 (Daleckii and Krein); Higham and Relton
        (2014), "Higher order Frechet derivatives of matrix functions and the level-2 condition
        number".
    """
    return mapped("hermitian_map", f, a, symmetrize_input, near_tie)


def hermitian_sum(
    f: Callable, a: Any, *, symmetrize_input: bool = True, near_tie: float | None = None
) -> jax.Array:
    """Return sum_i f(w_i) = tr f(A) of a Hermitian matrix, with gradient Q f'(w) Q^H.

    The gradient is a `hermitian_map`, so derivatives are right at ties up to fourth order, where
    the Hessian of jnp.sum(f(eigvalsh(A))) is not. log det is the sum of log, the von Neumann
    entropy that of -w log w, the sum of positive parts that of a ReLU.

    Cost: one `eigh`; the gradient one product of n^3; a Hessian-vector product about four.

    Args:
        f: elementwise function of an array of eigenvalues, as in `hermitian_map`.
        a: Hermitian array (..., n, n).
        symmetrize_input: as in `hermitian_map`.
        near_tie: as in `hermitian_map`, for f'.

    Returns:
        Array (...,), real.

    Raises:
        TypeError: f is not a function or changes the dtype; ``a`` is not an array.
        ValueError: f is not elementwise; ``a`` is not square; a derivative of fifth order.

    Example:
        The gradient of log det is the inverse:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.array([[2.0, 0.0], [0.0, 2.0]])
        >>> print(jax.grad(lambda A: jaxsvd.hermitian_sum(jnp.log, A))(A))
        [[0.5 0. ]
         [0.  0.5]]

    References:
        Lewis (1996), "Derivatives of spectral functions", theorem 1.1.
    """
    name = "hermitian_sum"
    a, near_tie = _arguments(name, a, symmetrize_input, near_tie)

    def of_matrix(function, constants, a, scaled):
        if a.shape[0] == 0:
            return jnp.zeros((), jnp.finfo(a.dtype).dtype)
        return total(EigenvaluesToThirdOrder, function, constants, numbers(herm(scaled)), herm(a))

    return apply(name, f, a, near_tie, of_matrix)


def core_map(f: Callable, C: Any, *, near_tie: float | None = None) -> jax.Array:
    """Return `hermitian_map` of a core C = Q diag(w) Q^H: f(C) = Q f(w) Q^H.

        dF = Q [f[w_i, w_j] o Q^H dC Q] Q^H,   f[x, y] = (f(x) - f(y))/(x - y), f'(x) at ties

    With (U, C, Vh) = core_svd(A, k), U core_map(jnp.sqrt, C) is the balanced factor of a split,
    trace(core_map(f, C)) is a sum over the k leading values with the right Hessian.

    Cost: one `eigh` of k x k; a derivative four products of k^3.

    Args:
        f: elementwise function of an array of eigenvalues, as in `hermitian_map`.
        C: Hermitian array (..., k, k); (C + C^H)/2 is used.
        near_tie: as in `hermitian_map`.

    Returns:
        Array (..., k, k), Hermitian.

    Raises:
        TypeError: f is not a function or changes the dtype; C is not an array.
        ValueError: f is not elementwise; C is not square; a derivative of fourth order.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> U, C, Vh = jaxsvd.core_svd(jnp.diag(jnp.array([4.0, 4.0, 1.0])), 2)
        >>> print(jaxsvd.core_map(jnp.sqrt, C))
        [[2. 0.]
         [0. 2.]]

    References:
        Higham (2008), "Functions of Matrices", theorem 3.11 (Daleckii and Krein).
    """
    name = "core_map"
    C = _checks.square(name, C, "C")
    near_tie = _checks.tolerance(name, "near_tie", near_tie, "the largest eigenvalue")
    return _map(name, f, C, near_tie)
