"""`svd` and `svdvals`: jnp.linalg.svd's signature, with derivatives that stay finite and right."""

import functools
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from .._types import SVDResult
from ..algorithms import router
from ..algorithms.dense import Request
from ..algorithms.phase import fix_phases
from ..rules.dense import herm, svd_pushforward, svdvals_pushforward
from . import probe
from .batching import over_leading_axes, power_of_two_scale
from .disturbance import disturbing, singular_numbers
from .ruled import ruled

THIN = Request()


def numbers(a: jax.Array, request: Request = THIN, *, raw: bool = False) -> SVDResult:
    """Return the SVD of one matrix as constants: what the rules compute with.

    ``raw`` says that the rule is that of the raw triplets, which drops terms at ties and zeros.
    """
    a = lax.stop_gradient(a)

    def solve(a):
        return router.solve(a, request)

    return singular_numbers(a, solve(a), solve, hermitian=request.hermitian, raw=raw)


@ruled(static=(2,))
def triplets(a: jax.Array, W: SVDResult, degeneracy_tol: float | None) -> SVDResult:
    """Return W, the numbers of the SVD of a, as a differentiable function of a.

    The algorithm runs once, outside; every order of derivative uses the same numbers.
    """
    del a, degeneracy_tol
    return W


@triplets.defjvp
def _triplets_jvp(degeneracy_tol, primals, tangents):
    a, W = primals
    # The factors come from `triplets` itself, so that they carry this rule to the next order.
    result = triplets(a, W, degeneracy_tol)
    return result, svd_pushforward(result, tangents[0], degeneracy_tol=degeneracy_tol)


@ruled()
def values(a: jax.Array) -> jax.Array:
    """Return the singular values of one matrix; vectors are computed only under a derivative."""
    return router.solve_values(a)


@values.defjvp
def _values_jvp(primals, tangents):
    (a,) = primals
    result = triplets(a, numbers(a), None)
    return result.S, svdvals_pushforward(result, tangents[0])


class Options(NamedTuple):
    """The static part of a call of `svd`."""

    request: Request
    compute_uv: bool
    subset: tuple[int, int] | None
    degeneracy_tol: float | None
    fix_signs: bool


def _svd_of_matrix(a: jax.Array, options: Options) -> SVDResult | jax.Array:
    scale = power_of_two_scale(a)
    a = a / scale.astype(a.dtype)
    request = options.request
    if request.hermitian:
        a = herm(a)
    if not options.compute_uv:
        # |w| of a Hermitian matrix would still need its vectors for the derivative.
        S = values(a) if disturbing.value is None else triplets(a, numbers(a), None).S
        return scale * (S if options.subset is None else S[slice(*options.subset)])
    # Signs are constants, which the algorithm fixes; phases have a derivative of their own.
    signs = options.fix_signs and not jnp.iscomplexobj(a)
    result = triplets(
        a, numbers(a, request._replace(signs=signs), raw=True), options.degeneracy_tol
    )
    if options.fix_signs and not signs:
        result = fix_phases(result)
    U, S, Vh = result
    if options.subset is not None:
        columns = slice(*options.subset)
        U, S, Vh = U[:, columns], S[columns], Vh[columns]
    return SVDResult(U, scale * S, Vh)


@functools.partial(jax.jit, static_argnames=("options", "dtype"))
def _svd(a: jax.Array, options: Options, dtype: DTypeLike) -> SVDResult | jax.Array:
    result = over_leading_axes(lambda x: _svd_of_matrix(x, options), _checks.working(a))
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result)


@overload
def svd(
    a: Any,
    full_matrices: bool = True,
    compute_uv: Literal[True] = True,
    hermitian: bool = False,
    subset_by_index: tuple[int, int] | None = None,
    *,
    method: str = "auto",
    degeneracy_tol: float | None = None,
    fix_signs: bool = True,
    result_dtype: DTypeLike | None = None,
) -> SVDResult: ...


@overload
def svd(
    a: Any,
    full_matrices: bool = True,
    *,
    compute_uv: Literal[False],
    hermitian: bool = False,
    subset_by_index: tuple[int, int] | None = None,
    method: str = "auto",
    degeneracy_tol: float | None = None,
    fix_signs: bool = True,
    result_dtype: DTypeLike | None = None,
) -> jax.Array: ...


@overload
def svd(
    a: Any,
    full_matrices: bool = True,
    compute_uv: bool = True,
    hermitian: bool = False,
    subset_by_index: tuple[int, int] | None = None,
    *,
    method: str = "auto",
    degeneracy_tol: float | None = None,
    fix_signs: bool = True,
    result_dtype: DTypeLike | None = None,
) -> SVDResult | jax.Array: ...


def svd(
    a: Any,
    full_matrices: bool = True,
    compute_uv: bool = True,
    hermitian: bool = False,
    subset_by_index: tuple[int, int] | None = None,
    *,
    method: str = "auto",
    degeneracy_tol: float | None = None,
    fix_signs: bool = True,
    result_dtype: DTypeLike | None = None,
) -> SVDResult | jax.Array:
    """Return the singular value decomposition A = U diag(S) Vh, differentiable everywhere.

    The call and the singular values are those of `jnp.linalg.svd`; the vectors are equal up to the
    phase of each pair, which is fixed here: the largest entry of each column of U is real and
    positive. Derivatives (forward, reverse, any order, any composition) follow

        dU = U [D o herm P + E o skew P] + (I - U U^H) dA V S^-1,   P = U^H dA V,
        dV = V [D o herm P - E o skew P] + (I - V V^H) dA^H U S^-1,   dS = Re diag P,
        D_ij = 1/(s_j - s_i),  E_ij = 1/(s_i + s_j)

    with the term in D dropped at ties and those in 1/s at zeros, so nothing is NaN. That is exact
    for losses of distinct singular values, whatever they depend on, and at ties for losses that do
    not distinguish the tied vectors (projectors, subspaces). Near a tie the quotient costs digits:
    about eps s_1 / gap relative, at worst eps^(1/4) just above ``degeneracy_tol``. There, and for a
    loss of U f(S) Vh at a tie, take `spectral_map`; for a sum over f(S) to second order
    `spectral_sum`; for subspaces and whole blocks `core_svd`, which divides by no gap inside the
    block. `diagnose` tells which.

    Cost: one SVD by LAPACK or the device's own library, about 20 m n min(m, n) flops; a batch of
    small matrices on CPU by Jacobi, all at once; long narrow ones (up to 256 columns) by CholeskyQR
    first. A derivative adds four products of that size. Memory O((m + n) min(m, n)); nothing of
    size m x m unless ``full_matrices`` asks for it.

    Args:
        a: array (..., m, n), real or complex. Half precision is computed in float32 and returned in
            its own dtype; integers and booleans are promoted to floating point.
        full_matrices: return all m columns of U and all n rows of Vh (default, as in jnp).
        compute_uv: False returns the singular values alone.
        hermitian: compute through `eigh` of (A + A^H)/2; A must be square.
        subset_by_index: static pair (start, end): return the triplets start <= i < end only. Needs
            ``full_matrices=False`` (or ``compute_uv=False``).
        method: "auto" (the router's choice); "lapack" (the platform's own library); "jacobi"
            (batches of small matrices, small singular values to full relative accuracy); "gram"
            (`eigh` of the Gram matrix, then Jacobi); "polar" (QDWH).
        degeneracy_tol: gap, relative to s_1, below which two singular values count as tied in the
            derivative; default eps^(3/4).
        fix_signs: False leaves signs and phases as the algorithm returns them.
        result_dtype: dtype of the results; default that of ``a``.

    Returns:
        SVDResult(U, S, Vh) of shapes (..., m, k), (..., k), (..., k, n) with k = min(m, n), or U
        (..., m, m) and Vh (..., n, n) with full matrices; S alone when ``compute_uv`` is False.
        A matrix that holds NaN or Inf gives NaN.

    Raises:
        TypeError: ``a`` is not an array, or a static argument is not static.
        ValueError: ``a`` has fewer than two axes, or a keyword has another value than listed.

    Example:
        The derivative of singular vectors at a tie, where `jnp.linalg.svd` returns NaN:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([2.0, 2.0, 1.0]))
        >>> def loss(A):  # energy of a vector in the top singular subspace
        ...     U, S, Vh = jaxsvd.svd(A)
        ...     return jnp.sum((U[:, :2].T @ jnp.ones((3, 1))) ** 2)
        >>> print(jnp.round(jax.grad(loss)(A), 4) + 0.0)
        [[0.     0.     0.6667]
         [0.     0.     0.6667]
         [1.3333 1.3333 0.    ]]

    References:
        Wan and Zhang (2019), arXiv:1909.02659, eq. 8; Giles (2008), section 3.5.
    """
    name = "svd"
    a = _checks.matrix(name, a)
    full_matrices = _checks.flag(name, "full_matrices", full_matrices)
    compute_uv = _checks.flag(name, "compute_uv", compute_uv)
    hermitian = _checks.flag(name, "hermitian", hermitian)
    if hermitian:
        a = _checks.square(name, a)
    subset = None
    if subset_by_index is not None:
        if full_matrices and compute_uv:
            raise ValueError(
                f"{name}: `subset_by_index` selects from the thin factors and wants "
                "full_matrices=False, got True"
            )
        subset = _checks.subset(name, subset_by_index, min(a.shape[-2:]))
    options = Options(
        Request(full_matrices, hermitian, _checks.choice(name, "method", method, router.METHODS)),
        compute_uv,
        subset,
        _checks.tolerance(name, "degeneracy_tol", degeneracy_tol),
        _checks.flag(name, "fix_signs", fix_signs),
    )
    result = _svd(a, options, _checks.result_dtype(name, result_dtype, a))
    return probe.observe(result) if compute_uv else result


def svdvals(a: Any) -> jax.Array:
    """Return the singular values of a, largest first.

    dS = Re diag(U^H dA V). Vectors are computed only when a derivative is taken. At repeated
    singular values a sum over f(S) keeps its exact gradient; for its Hessian use `spectral_sum`.

    Cost: about a quarter of `svd`; a derivative costs one `svd` and one product of m n min(m, n).

    Args:
        a: array (..., m, n), as in `svd`.

    Returns:
        Singular values, (..., min(m, n)), real.

    Raises:
        TypeError: ``a`` is not an array.
        ValueError: ``a`` has fewer than two axes.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> print(jaxsvd.svdvals(jnp.array([[3.0, 0.0], [4.0, 0.0]])))
        [5. 0.]

    References:
        Stewart and Sun (1990), "Matrix Perturbation Theory", theorem IV.2.3.
    """
    a = _checks.matrix("svdvals", a)
    return _svd(a, Options(THIN, False, None, None, False), a.dtype)
