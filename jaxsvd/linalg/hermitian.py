"""Hermitian matrices: whitening, the Jordan-Wielandt matrix, Rayleigh quotients."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from ..algorithms.products import adjoint, product
from ..primitives.batching import over_leading_axes, vmapped
from ..primitives.svd import svd
from ..rules.closed import cut_at
from ..rules.dense import herm
from . import maps


class JordanWielandt(NamedTuple):
    """The Hermitian matrix [[0, A], [A^H, 0]] and its eigendecomposition.

    Attributes:
        matrix: (..., m + n, m + n).
        eigenvalues: -s_1 .. -s_k, |m - n| zeros, s_k .. s_1, ascending, (..., m + n), real.
        eigenvectors: orthonormal columns in the same order, (..., m + n, m + n).
    """

    matrix: jax.Array
    eigenvalues: jax.Array
    eigenvectors: jax.Array


def _pca(a: jax.Array, rtol: float | None) -> jax.Array:
    U, S, Vh = svd(herm(a), hermitian=True)
    # V = U sign(w): a negative eigenvalue is told by its sign, and whitens to NaN as in Cholesky.
    signs = jnp.real(jnp.sum(jnp.conj(U) * adjoint(Vh), axis=0))
    kept = cut_at(lax.stop_gradient(S), a.shape, rtol) < S
    safe = jnp.where(kept, jnp.where(signs < 0, jnp.nan, S), 1)
    scale = jnp.where(kept, 1 / jnp.sqrt(safe), 0)
    return scale[:, None].astype(a.dtype) * adjoint(U)


def _cholesky(a: jax.Array) -> jax.Array:
    L = lax.linalg.cholesky(herm(a), symmetrize_input=False)
    identity = jnp.eye(a.shape[0], dtype=a.dtype)
    return lax.linalg.triangular_solve(L, identity, left_side=True, lower=True)


@functools.partial(jax.jit, static_argnames=("kind", "rtol"))
def _whitening(cov: jax.Array, kind: str, rtol: float | None) -> jax.Array:
    def of_matrix(a):
        if a.shape[0] == 0:
            return a
        a, scale = maps.scaled(a)
        if kind == "zca":
            W = maps.inverse_root("whitening", a, rtol)
        else:
            W = _pca(a, rtol) if kind == "pca" else _cholesky(a)
        return W / jnp.sqrt(scale)

    return _checks.restore(over_leading_axes(of_matrix, _checks.working(cov)), cov.dtype)


def whitening(cov: Any, kind: str = "zca", rtol: float | None = None) -> jax.Array:
    """Return a W that whitens: W C W^H = I for the covariance C = Q diag(w) Q^H.

        zca:       C^(-1/2) = Q diag(w^(-1/2)) Q^H       Hermitian, changes the data least
        pca:       diag(w^(-1/2)) Q^H                    components in order of variance
        cholesky:  L^-1,  C = L L^H                      lower triangular

    "zca" and "cholesky" are smooth: "zca" has exact first and second derivatives at equal
    eigenvalues as elsewhere, "cholesky" every order. "pca" is not: where eigenvalues are equal its
    rows are not determined, and only losses that do not tell them apart have a derivative there.

    Eigenvalues up to rtol w_1 count as zero and are left out ("zca", "pca"): W C W^H is then the
    projector on the others, and the derivative that on matrices of constant rank. A matrix that is
    not positive semidefinite gives NaN, a singular one NaN or infinite numbers for "cholesky".

    Cost: one `eigh`, or one Cholesky factor and its inverse.

    Args:
        cov: Hermitian array (..., n, n); (C + C^H)/2 is used.
        kind: static, "zca", "pca" or "cholesky".
        rtol: static; default (n + sqrt(n)) eps.

    Returns:
        Array (..., n, n).

    Raises:
        TypeError: ``cov`` is not an array, or ``rtol`` is not a Python float.
        ValueError: ``cov`` is not square; unknown kind; a third derivative of "zca".

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> C = jnp.array([[2.5, 1.5], [1.5, 2.5]])
        >>> W = jaxsvd.linalg.whitening(C)
        >>> print(W)
        [[ 0.75 -0.25]
         [-0.25  0.75]]

    References:
        Kessy, Lewin and Strimmer (2018), "Optimal whitening and decorrelation", table 1.
    """
    name = "linalg.whitening"
    cov = _checks.square(name, cov, "cov")
    _checks.choice(name, "kind", kind, ("zca", "pca", "cholesky"))
    return _whitening(cov, kind, _checks.tolerance(name, "rtol", rtol))


@jax.jit
def _jordan_wielandt(a: jax.Array) -> JordanWielandt:
    def of_matrix(a):
        m, n = a.shape
        k = min(m, n)
        U, S, Vh = svd(a)
        V = adjoint(Vh)
        upper = jnp.concatenate([jnp.zeros((m, m), a.dtype), a], axis=1)
        lower = jnp.concatenate([adjoint(a), jnp.zeros((n, n), a.dtype)], axis=1)
        half = jnp.concatenate([U[:, :k], V[:, :k]]) / 2**0.5
        mirror = jnp.concatenate([U[:, :k], -V[:, :k]]) / 2**0.5
        # The null vectors of the longer side: (u, 0) or (0, v).
        rest = jnp.concatenate([U[:, k:], jnp.zeros((n, m - k), a.dtype)])
        if n > m:
            rest = jnp.concatenate([jnp.zeros((m, n - k), a.dtype), V[:, k:]])
        zeros = jnp.full((rest.shape[1],), 0 * jnp.sum(S))  # NaN where the others are
        return JordanWielandt(
            jnp.concatenate([upper, lower]),
            jnp.concatenate([-S, zeros, S[::-1]]),
            jnp.concatenate([mirror, rest, half[:, ::-1]], axis=1),
        )

    result = over_leading_axes(of_matrix, _checks.working(a))
    return jax.tree.map(lambda x: _checks.restore(x, a.dtype), result)


def jordan_wielandt(a: Any) -> JordanWielandt:
    """Return H = [[0, A], [A^H, 0]] with its eigenpairs, which are the singular triplets of A.

        H [u_i; +-v_i]/sqrt(2) = +-s_i [u_i; +-v_i]/sqrt(2)

    and |m - n| zeros, (u, 0) or (0, v). What holds for Hermitian eigenvalues holds for singular
    values through it: perturbation bounds, interlacing, Krylov methods. Derivatives by the rule of
    `jaxsvd.svd`.

    Cost: one SVD with full matrices; memory (m + n)^2.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`.

    Returns:
        JordanWielandt(matrix, eigenvalues, eigenvectors).

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.linalg.jordan_wielandt(jnp.array([[3.0], [4.0]])).eigenvalues)
        [-5. 0. 5.]

    References:
        Golub and Van Loan (2013), "Matrix Computations", section 8.6.1.
    """
    return _jordan_wielandt(_checks.matrix("linalg.jordan_wielandt", a))


@functools.partial(jax.jit, static_argnames=("dtype",))
def _rayleigh_quotient(a, v, u, dtype: DTypeLike) -> jax.Array:
    def unit(x):
        x, _ = maps.scaled(x)
        return x / jnp.sqrt(jnp.sum(jnp.real(jnp.conj(x) * x))).astype(x.dtype)

    def of_matrix(a, v, *u):
        v = unit(v)
        left = unit(u[0]) if u else v
        return jnp.sum(jnp.conj(left) * product(a, v[:, None])[:, 0])

    arrays = (a, v) if u is None else (a, v, u)
    return _checks.restore(vmapped(of_matrix, a.ndim - 2)(*arrays), dtype)


def rayleigh_quotient(a: Any, v: Any, u: Any = None) -> jax.Array:
    """Return the Rayleigh quotient of a vector, or of a pair of them.

        v^H A v / (v^H v)      estimates an eigenvalue of a Hermitian A to second order in v
        u^H A v / (|u| |v|)    estimates a singular value of any A, likewise

    Stationary exactly at eigenvectors (at pairs of singular vectors). The norms are taken in units
    of the vectors' own scale.

    Cost: one product of A with a vector.

    Args:
        a: array (..., m, n), dtypes as in `jaxsvd.svd`; square where ``u`` is not given.
        v: array (..., n) with the leading axes of ``a``.
        u: array (..., m); default v.

    Returns:
        Array (...,), complex where an argument is; NaN for a vector of zeros.

    Raises:
        TypeError: an argument is not an array.
        ValueError: shapes that do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 1.0]))
        >>> print(jaxsvd.linalg.rayleigh_quotient(A, jnp.array([1.0, 1.0])))
        2.0
        >>> quotient = lambda v: jaxsvd.linalg.rayleigh_quotient(A, v)
        >>> print(jax.grad(quotient)(jnp.array([1.0, 0.0])))  # an eigenvector
        [0. 0.]

    References:
        Parlett (1998), "The Symmetric Eigenvalue Problem", section 1.5; Ostrowski (1958).
    """
    name = "linalg.rayleigh_quotient"
    a = _checks.matrix(name, a) if u is not None else _checks.square(name, a)
    *leading, m, n = a.shape
    arrays = [a]
    for argument, x, size in (("v", v, n), ("u", u, m)):
        if argument == "u" and x is None:
            continue
        x = _checks.array(name, x, argument)
        if x.shape != (*leading, size):
            raise ValueError(
                f"{name}: `{argument}` must have shape {(*leading, size)}, as `a` has shape "
                f"{a.shape}, got {x.shape}"
            )
        arrays.append(x)
    arrays, dtype = maps.common(*arrays)
    return _rayleigh_quotient(*arrays, *([None] if u is None else []), dtype=dtype)
