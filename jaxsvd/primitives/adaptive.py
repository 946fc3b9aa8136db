"""`adaptive_svd`: the error is given, the rank is found."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _checks
from .._types import Info, SVDResult
from ..algorithms import adaptive, krylov, outofcore, passes
from ..algorithms.phase import fix_phases
from ..algorithms.router import solve, without_gathering
from ..operators.base import Operator
from ..operators.compose import LowRank
from ..operators.dense import Dense
from ..operators.rowblocks import RowBlocks, held_by
from ..operators.sparse import Sparse
from .batching import over_leading_axes
from .placement import on_any_mesh
from .runs import Config, Ritz, default_tol, settled
from .truncated import arguments, check_key, truncated_triplets


def frobenius_norm(A: Operator) -> jax.Array:
    """Return |A|_F of a matrix whose entries are at hand."""
    if isinstance(A, Dense):
        entries = A.a.astype(A.dtype)
    elif isinstance(A, Sparse):
        entries = A.data
    elif isinstance(A, LowRank):  # |U s Vh|_F from the small Gram matrices
        U = A.U.astype(A.dtype) * A.s.astype(A.dtype)[None, :]
        left = jnp.linalg.qr(U, mode="r")
        right = jnp.linalg.qr(jnp.conj(A.Vh.astype(A.dtype)).T, mode="r")
        entries = left @ jnp.conj(right).T
    elif isinstance(A, RowBlocks):  # by a pass of its own
        return jnp.asarray(passes.frobenius_norm(A), jnp.finfo(A.dtype).dtype)
    else:
        raise TypeError(
            "adaptive_svd: `a` must be an array, a sparse matrix or a LowRank, whose Frobenius "
            f"norm is known, got {type(A).__name__}; use truncated_svd for a fixed rank"
        )
    largest = jnp.max(jnp.abs(entries), initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.linalg.norm(entries / unit.astype(entries.dtype))


def _adaptive(A: Operator, key: jax.Array, tol: float, config: Config, block: int | None):
    """Return the padded triplets and what is known of them."""
    constant = lax.stop_gradient(A)
    m, n = A.shape
    max_rank = config.k
    norm = frobenius_norm(constant)
    b = block or (8 if max_rank < 32 else 16)
    basis = b * -(-(max_rank + 4 * b) // b)
    if config.method == "passes":
        choose = functools.partial(
            outofcore.choose, k=max_rank, tol=tol, max_passes=None, norm=float(norm)
        )
        found = passes.run(A, choose, key)
        ritz, residuals, iterations, products, _ = found
        rank, error, enough = adaptive.smallest_rank(ritz.S, norm, tol, max_rank)
        residuals = residuals[:max_rank]
    elif basis + b <= min(m, n):
        sizes = krylov.Config(max_rank, b, basis, basis, 0.0, basis // b)
        found = adaptive.search(constant, norm, tol, sizes, key)
        ritz, rank, error, enough = found[:4]
        residuals = found.state.scale * found.state.residuals
        iterations, products = found.state.iteration, b * (2 * found.state.iteration + 1)
    else:
        ritz = solve(constant.to_dense(), without_gathering(A.shape))
        rank, error, enough = adaptive.smallest_rank(ritz.S, norm, tol, max_rank)
        residuals = jnp.zeros((max_rank,), ritz.S.dtype)
        iterations, products = jnp.zeros((), jnp.int32), jnp.asarray(min(m, n), jnp.int32)
    # The triplets beyond the rank leave the result and precondition its derivative instead.
    U, S, Vh = ritz
    within = (jnp.arange(S.shape[0]) < rank).astype(S.dtype)
    kept, rest = within[:max_rank], 1 - within

    def split(X, axis):
        first = lax.slice_in_dim(X, 0, max_rank, axis=axis)
        shape = [1] * X.ndim
        shape[axis] = -1
        return jnp.concatenate(
            [first * kept.reshape(shape).astype(X.dtype), X * rest.reshape(shape).astype(X.dtype)],
            axis=axis,
        )

    padded = SVDResult(split(U, 1), split(S, 0), split(Vh, 0))
    following = jnp.max(S * rest, initial=0)
    smallest = jnp.min(jnp.where(kept > 0, S[:max_rank], jnp.inf), initial=jnp.inf)
    gap = jnp.where(rank > 0, smallest - following, 0)
    # The values beyond the rank are all Ritz values, so the last of them bounds what is mixed in.
    limits = jnp.finfo(S.dtype)
    mixed = residuals * kept / jnp.maximum(S[:max_rank] - S[-1], limits.tiny)
    rounding = limits.eps * S[0] / jnp.maximum(gap, limits.tiny)
    accuracy = jnp.max(mixed, initial=0) + rounding
    result = truncated_triplets(A, settled(A, Ritz(*padded, accuracy), config), config)
    info = Info(
        residuals=residuals * kept,
        error=error,
        rank=rank,
        gap=gap,
        gradient_error=accuracy,
        iterations=iterations,
        products=products,
        converged=enough,
    )
    return result, lax.stop_gradient(info)


@functools.partial(jax.jit, static_argnames=("tol", "config", "block", "dtype"))
def _adaptive_svd(key, a: Any, tol: float, config: Config, block, dtype: DTypeLike):
    def of_any(a, key):
        def of_operator(A):
            result, info = _adaptive(A, key, tol, config, block)
            return fix_phases(result), info

        if isinstance(a, Operator):
            return of_operator(a)
        return over_leading_axes(lambda a: of_operator(Dense(a)), _checks.working(a))

    result, info = on_any_mesh(of_any, lambda place: (place.triplets, place.small), a, key)
    return jax.tree.map(lambda x: _checks.restore(x, dtype), result), info


def adaptive_svd(
    key: jax.Array,
    a: Any,
    tol: float,
    *,
    max_rank: int,
    block: int | None = None,
    return_info: bool = False,
) -> SVDResult | tuple[SVDResult, Info]:
    """Return the triplets of the smallest rank whose relative error is within a tolerance.

        |A - U diag(S) Vh|_F <= tol |A|_F

    The shapes are those of ``max_rank``, zeros beyond the rank found: ``Info.rank`` says how many
    count, ``Info.error`` the relative error reached, ``Info.converged`` whether max_rank sufficed.
    The rank is the smallest within about one triplet where the spectrum decays, and the promise on
    the error holds without convergence: it is an identity (`algorithms.adaptive`). The derivative
    is the rule of `truncated_svd` at the rank found; the rank itself is a constant.

    Cost: about 2 (rank + a few blocks) products with A; memory O((m + n)(max_rank + 5 block)).

    Args:
        key: from `jax.random.key`; the same key and input give the same bits.
        a: array (..., m, n), a BCOO or BCSR matrix without duplicates, or a LowRank operator.
        tol: static relative error, at least 10 sqrt(eps): 3.5e-3 in float32, 1.5e-7 in float64.
        max_rank: static; triplets at most.
        block: static; columns multiplied at a time, default 8, or 16 from max_rank 32.
        return_info: return (SVDResult, Info).

    Returns:
        SVDResult(U, S, Vh) of shapes (..., m, max_rank), (..., max_rank), (..., max_rank, n).

    Raises:
        TypeError: the Frobenius norm of ``a`` is not at hand; a static argument is traced.
        ValueError: max_rank out of range, a tolerance that the dtype cannot certify.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> A = jnp.diag(2.0 ** -jnp.arange(60.0))
        >>> result, info = jaxsvd.adaptive_svd(
        ...     jax.random.key(0), A, 0.1, max_rank=8, return_info=True)
        >>> int(info.rank), bool(info.error <= 0.1)
        (4, True)

    References:
        `jaxsvd.algorithms.adaptive`; Halko, Martinsson and Tropp (2011), algorithm 4.2.
    """
    name = "adaptive_svd"
    key = check_key(name, key)
    a, _, _, _, dtype = arguments(name, a, None)
    max_rank = _checks.static_int(name, "max_rank", max_rank, 1, min(a.shape[-2:]))
    work = jnp.dtype(dtype if dtype.itemsize >= 4 else jnp.float32)
    least = adaptive.smallest_certifiable(work)
    given = _checks.tolerance(name, "tol", tol)
    if given is None or given < least:
        raise ValueError(
            f"{name}: `tol` must be at least {least:.1e}, the least error that {work} can tell "
            f"from rounding, got {tol}"
        )
    if block is not None:
        block = _checks.static_int(name, "block", block, 1, max(a.shape[-2:]))
    held = isinstance(a, Operator) and held_by(a) is not None
    method = "passes" if held else "sketch"
    config = Config(max_rank, method, default_tol(work), None, False)
    if held:  # no argument of a program
        result, info = _adaptive(a, key, given, config, block)
        result = fix_phases(result)
    else:
        result, info = _adaptive_svd(key, a, given, config, block, dtype)
    return (result, info) if _checks.flag(name, "return_info", return_info) else result
