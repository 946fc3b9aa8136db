"""`core_svd` and `low_rank`: singular subspaces with exact derivatives at ties inside the block."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from .._types import CoreSVD, SVDResult
from ..algorithms.products import product
from ..rules.core import core_pushforward, full_numbers
from ..rules.phase import fix_phases
from .batching import over_leading_axes, power_of_two_scale
from .svd import numbers

METHODS = ("auto", "full")


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def core_triplets(a: jax.Array, W: SVDResult, k: int) -> CoreSVD:
    """Return (U, C, Vh) of the k leading triplets of W, the SVD of a, as a function of a."""
    del a
    U, S, Vh = W
    return CoreSVD(U[:, :k], jnp.diag(S[:k]).astype(U.dtype), Vh[:k])


@core_triplets.defjvp
def _core_triplets_jvp(k, primals, tangents):
    a, W = primals
    # U, C, V come from `core_triplets` itself, so that they carry this rule to the next order.
    result = core_triplets(a, W, k)
    return result, core_pushforward(a, result, tangents[0], full_numbers(W, k))


def _core_of_matrix(a: jax.Array, k: int) -> CoreSVD:
    if min(a.shape) == 0:
        empty = numbers(a)
        return CoreSVD(empty.U, jnp.zeros((0, 0), a.dtype), empty.Vh)
    scale = power_of_two_scale(a)
    a = a / scale.astype(a.dtype)
    # The phases are constants here: no loss within the contract depends on them.
    U, C, Vh = core_triplets(a, fix_phases(lax.stop_gradient(numbers(a))), k)
    return CoreSVD(U, scale.astype(C.dtype) * C, Vh)


@functools.partial(jax.jit, static_argnames=("k", "dtype"))
def _core_svd(a: jax.Array, k: int, dtype: DTypeLike) -> CoreSVD:
    result = over_leading_axes(lambda x: _core_of_matrix(x, k), _checks.working(a))
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result)


def core_svd(a: Any, k: int | None = None, *, method: str = "auto") -> CoreSVD:
    """Return A_k = U C Vh, the truncated SVD whose derivative has no gap inside the block.

    C = diag(S) in value, while its tangent is the full Hermitian herm(U^H dA V), so that nothing is
    divided by s_i - s_j within the k kept pairs:

        dC = herm P,   dU = U K + X,   dV = -V K + Y,   C K + K C = skew P,   P = U^H dA V
        X C - A_perp Y = (I - U U^H) dA V,   Y C - A_perp^H X = (I - V V^H) dA^H U

    Contract: the loss must be unchanged under U -> U Q, C -> Q^H C Q, V -> V Q for every unitary Q
    of size k (nearly every loss of a subspace, a projector or a low-rank product is). Then
    derivatives of every order are exact where s_k > s_{k+1} (k < min(m, n)) or A has full rank
    (k = min(m, n); at zero singular values use `spectral_map`). Not such losses, not even at
    distinct values: a slice U[:, :2] of core_svd(A, 4) (ask for k=2), a single entry of C.
    sum(f(diag C)) has the right gradient and a wrong Hessian: write trace(core_map(f, C)). Factors
    vary in phase from point to point within this contract, and no loss of it can tell.

    Cost: one SVD; a derivative adds about six products of m n k. Memory O((m + n) min(m, n)).

    Args:
        a: array (..., m, n), dtypes as in `svd`.
        k: static number of triplets, 1 <= k <= min(m, n); default min(m, n).
        method: "auto" or "full" (from the full SVD).

    Returns:
        CoreSVD(U, C, Vh) of shapes (..., m, k), (..., k, k), (..., k, n).

    Raises:
        TypeError: ``a`` is not an array, or k is not a static int.
        ValueError: k out of range, fewer than two axes, unknown method.

    Example:
        The Hessian of |A_2|_F^2 at a tie inside the block:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([2.0, 2.0, 1.0]))
        >>> def energy(A):
        ...     C = jaxsvd.core_svd(A, 2).C
        ...     return jnp.sum(C ** 2)
        >>> print(jnp.round(jax.grad(energy)(A), 4) + 0.0)
        [[4. 0. 0.]
         [0. 4. 0.]
         [0. 0. 0.]]

    References:
        The derivation in `jaxsvd.rules.core`; Bhatia, Jain and Lim (2019), section 3.
    """
    name = "core_svd"
    a = _checks.matrix(name, a)
    smallest = min(a.shape[-2:])
    k = smallest if k is None else _checks.static_int(name, "k", k, 1, smallest)
    _checks.choice(name, "method", method, METHODS)
    return _core_svd(a, k, a.dtype)


def low_rank(a: Any, k: int) -> jax.Array:
    """Return the best approximation of A of rank k: the sum of its k leading s_i u_i v_i^H.

    A_k = U C Vh with the factors of `core_svd`, so only the gap at the cut, s_k - s_{k+1}, enters
    its derivative; at a tie across the cut there is none, and the value stays finite. For
    k = min(m, n) it is A itself.

    Cost: that of `core_svd` and one product of m n k.

    Args:
        a: array (..., m, n), dtypes as in `svd`.
        k: static rank, 1 <= k <= min(m, n).

    Returns:
        Array (..., m, n).

    Raises:
        TypeError: ``a`` is not an array, or k is not a static int.
        ValueError: k out of range, fewer than two axes.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> print(jaxsvd.low_rank(A, 2))
        [[3. 0. 0.]
         [0. 2. 0.]
         [0. 0. 0.]]

    References:
        Eckart and Young (1936); Mirsky (1960).
    """
    name = "low_rank"
    a = _checks.matrix(name, a)
    k = _checks.static_int(name, "k", k, 1, min(a.shape[-2:]))
    if k == min(a.shape[-2:]):
        return a
    return _low_rank(a, k, a.dtype)


@functools.partial(jax.jit, static_argnames=("k", "dtype"))
def _low_rank(a: jax.Array, k: int, dtype: DTypeLike) -> jax.Array:
    def of_matrix(a):
        U, C, Vh = _core_of_matrix(a, k)
        return product(product(U, C), Vh)

    return _checks.restore(over_leading_axes(of_matrix, _checks.working(a)), dtype)
