"""`core_svd` and `low_rank`: singular subspaces with exact derivatives at ties inside the block."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .. import _checks
from .._types import CoreSVD, SVDResult
from ..algorithms.phase import fix_phases
from ..algorithms.products import adjoint, product
from ..operators.base import Operator
from ..operators.dense import Dense
from ..rules.core import core_tangents
from .batching import over_leading_axes, power_of_two_scale
from .placement import on_any_mesh
from .ruled import ruled
from .runs import Config, Ritz, constants, rule_numbers
from .truncated import arguments, forward, tangent_products


@ruled(static=(2,))
def core_triplets(A: Operator, ritz: Ritz, config: Config) -> CoreSVD:
    """Return (U, C, Vh) of the k leading of the triplets ``ritz`` as a function of A."""
    del A
    U, S, Vh, _ = ritz
    k = config.k
    return CoreSVD(U[:, :k], jnp.diag(S[:k]).astype(U.dtype), Vh[:k])


@core_triplets.defjvp
def _core_triplets_jvp(config, primals, tangents):
    A, ritz = primals
    # U, C, V come from `core_triplets` itself, so that they carry this rule to the next order.
    result = core_triplets(A, ritz, config)
    products = tangent_products(A, tangents[0], result.U, adjoint(result.Vh))
    return result, core_tangents(A, result, products, rule_numbers(A, ritz, config))


def _core_of_operator(A: Operator, config: Config, start, seed: int) -> CoreSVD:
    run = forward(A, config, start, seed)
    # The phases are constants here: no loss within the contract depends on them.
    run = run._replace(ritz=fix_phases(run.ritz))
    result = core_triplets(A, constants(A, run, config), config)
    if config.strict:
        mark = jnp.where(run.converged, 1, jnp.nan).astype(run.residuals.dtype)
        result = CoreSVD(*(x * mark.astype(x.dtype) for x in result))
    return result


def _core_of_matrix(a: jax.Array, config: Config, start, seed: int) -> CoreSVD:
    if min(a.shape) == 0:
        rows, columns = a.shape
        shapes = (rows, 0), (0, 0), (0, columns)
        return CoreSVD(*(jnp.zeros(shape, a.dtype) for shape in shapes))
    scale = power_of_two_scale(a).astype(a.dtype)
    U, C, Vh = _core_of_operator(Dense(a / scale), config, start, seed)
    return CoreSVD(U, scale * C, Vh)


@functools.partial(jax.jit, static_argnames=("config", "seed", "dtype", "multiply"))
def _core(a: Any, config: Config, start, seed: int, dtype: DTypeLike, multiply: bool) -> Any:
    def finish(result: CoreSVD):
        U, C, Vh = result
        return product(product(U, C), Vh) if multiply else result

    def of_any(a, start):
        if isinstance(a, Operator):
            return finish(_core_of_operator(a, config, start, seed))
        return over_leading_axes(
            lambda a: finish(_core_of_matrix(a, config, start, seed)), _checks.working(a)
        )

    result = on_any_mesh(of_any, lambda place: place.matrix if multiply else place.core, a, start)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result)


def core_svd(
    a: Any,
    k: int | None = None,
    *,
    method: str = "auto",
    tol: float | None = None,
    max_iterations: int | None = None,
    key: int | None = None,
    start: SVDResult | None = None,
    strict: bool = False,
) -> CoreSVD:
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

    Cost: that of `truncated_svd`; a small matrix goes through its full SVD.

    Args:
        a: array (..., m, n), dtypes as in `svd`; a sparse matrix or operator as in
            `truncated_svd`.
        k: static number of triplets, 1 <= k <= min(m, n); default min(m, n).
        method: as in `truncated_svd`, like the four that follow.
        tol: residual to reach, relative to s_1.
        max_iterations: steps at most.
        key: static int that seeds the start block.
        start: an earlier result to start from.
        strict: NaN where something did not converge.

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
    given = arguments("core_svd", a, k, method, tol, max_iterations, key, start, strict)
    return _core(*given, multiply=False)


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
    a = _checks.matrix("low_rank", a)
    given = arguments("low_rank", a, k)
    if k < min(a.shape[-2:]):
        return _core(*given, multiply=True)

    def itself(a):  # NaN all over where an entry is, as with every other k
        return a * jnp.where(jnp.isnan(power_of_two_scale(a)), jnp.nan, 1).astype(a.dtype)

    return over_leading_axes(itself, a)
