"""`eigh`: jnp.linalg.eigh's signature, with derivatives that stay finite and right."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _checks
from .._types import EighResult
from ..rules.dense import herm
from ..rules.eigh import eigh_pushforward, fix_phases
from ..rules.hermitian import from_triangle
from .batching import over_leading_axes, power_of_two_scale
from .hermitian import numbers
from .ruled import ruled


@ruled(static=(2,))
def pairs(a: jax.Array, W: EighResult, degeneracy_tol: float | None) -> EighResult:
    """Return W, the numbers of the eigendecomposition of a, as a differentiable function of a."""
    del a, degeneracy_tol
    return W


@pairs.defjvp
def _pairs_jvp(degeneracy_tol, primals, tangents):
    a, W = primals
    # The factors come from `pairs` itself, so that they carry this rule to the next order.
    result = pairs(a, W, degeneracy_tol)
    return result, eigh_pushforward(result, tangents[0], degeneracy_tol=degeneracy_tol)


class Options(NamedTuple):
    """The static part of a call of `eigh`."""

    lower: bool
    symmetrize_input: bool
    degeneracy_tol: float | None
    fix_signs: bool


@functools.partial(jax.jit, static_argnames=("options",))
def _eigh(a: jax.Array, options: Options) -> EighResult:
    def of_matrix(a):
        if a.shape[0] == 0:
            return EighResult(jnp.zeros((0,), jnp.finfo(a.dtype).dtype), a)
        scale = power_of_two_scale(a)
        a = a / scale.astype(a.dtype)
        # The Hermitian part is taken of the scaled matrix, where it cannot overflow.
        a = herm(a) if options.symmetrize_input else a
        result = pairs(a, EighResult(*numbers(a, raw=True)), options.degeneracy_tol)
        w, Q = fix_phases(result) if options.fix_signs else result
        return EighResult(scale * w, Q)

    work = _checks.working(a)
    if not options.symmetrize_input:  # before the scale: the other triangle may hold NaN
        work = from_triangle(work, lower=options.lower)
    result = over_leading_axes(of_matrix, work)
    return EighResult(*(_checks.restore(x, a.dtype) for x in result))


def eigh(
    a: Any,
    UPLO: str | None = None,
    symmetrize_input: bool = True,
    *,
    degeneracy_tol: float | None = None,
    fix_signs: bool = True,
) -> EighResult:
    """Return the eigenvalues and eigenvectors of a Hermitian matrix, differentiable everywhere.

    The call and the eigenvalues are those of `jnp.linalg.eigh`; the vectors are equal up to phase,
    which is fixed here: the largest entry of each is real and positive. Derivatives (forward,
    reverse, any order, any composition) follow

        dw = diag P,   dQ = Q [D o P],   P = Q^H dA Q,   D_ij = 1/(w_j - w_i)

    with D = 0 at ties, so nothing is NaN. That is exact for losses of distinct eigenvalues,
    whatever they depend on, and to first order at ties for losses that do not distinguish the tied
    vectors (projectors, subspaces, sums over f(w)). Near a tie the quotient costs digits: about
    eps |A| / gap relative. There, at ties for any Q f(w) Q^H, and for second derivatives, take
    `hermitian_map` or `hermitian_sum`; for subspaces and whole blocks `core_eigh`, which divides by
    no gap inside the block.

    Cost: one eigendecomposition, about 9 n^3 flops; a derivative three products of n^3. In single
    precision matrices of up to 128 rows get a step of refinement, which leaves values and vectors
    right to about one eps (`algorithms.refinement`).

    Args:
        a: Hermitian array (..., n, n), dtypes as in `svd`.
        UPLO: "L" (default) or "U": the triangle that is read without ``symmetrize_input``.
        symmetrize_input: use (A + A^H)/2 (default); False takes one triangle and the real part of
            the diagonal, and derivatives are with respect to those.
        degeneracy_tol: gap, relative to the largest |w|, below which two eigenvalues count as tied
            in the derivative; default eps^(3/4).
        fix_signs: False leaves signs and phases as the algorithm returns them.

    Returns:
        EighResult(eigenvalues, eigenvectors) of shapes (..., n), ascending, and (..., n, n). A
        matrix that holds NaN or Inf gives NaN.

    Raises:
        TypeError: ``a`` is not an array, or a static argument is not static.
        ValueError: ``a`` is not square; another ``UPLO``.

    Example:
        The derivative of eigenvectors at a tie, where `jnp.linalg.eigh` returns NaN:

        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(jnp.array([2.0, 2.0, 1.0]))
        >>> def loss(A):  # energy of a vector in the top eigenspace
        ...     w, Q = jaxsvd.eigh(A)
        ...     return jnp.sum((Q[:, 1:].T @ jnp.ones((3, 1))) ** 2)
        >>> print(jnp.round(jax.grad(loss)(A), 4) + 0.0)
        [[0. 0. 1.]
         [0. 0. 1.]
         [1. 1. 0.]]

    References:
        Giles (2008), "An extended collection of matrix derivative results", section 3.1; Ogita and
        Aishima (2018), "Iterative refinement for symmetric eigenvalue decomposition".
    """
    name = "eigh"
    a = _checks.square(name, a)
    if UPLO is not None:
        _checks.choice(name, "UPLO", UPLO, ("L", "U"))
    options = Options(
        UPLO != "U",
        _checks.flag(name, "symmetrize_input", symmetrize_input),
        _checks.tolerance(name, "degeneracy_tol", degeneracy_tol, "the largest |eigenvalue|"),
        _checks.flag(name, "fix_signs", fix_signs),
    )
    return _eigh(a, options)
