"""Singular value thresholding: least nuclear norm through the observed entries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks
from ..algorithms import drive, subspace
from ..operators.compose import LowRank
from ..operators.sparse import Sparse
from ..primitives.truncated import reachable_tol
from .observed import EXTRA, CompletionInfo, observed_entries, sampled, sizes, with_values

# Steps of subspace iteration before the first threshold.
FIRST = 4


class _Thresholding(NamedTuple):
    y: jax.Array  # (nse,), the dual variable, at the observed places
    basis: subspace.State
    error: jax.Array
    iteration: jax.Array


def _thresholding(a: Sparse, tau, delta, k: int, tol: float, limit: int):
    (m, n), dtype = a.shape, a.dtype
    l = min(k + EXTRA, m, n)
    size = jnp.linalg.norm(a.data)
    tiny = jnp.finfo(dtype).tiny

    def shrunk(basis):
        return jnp.where(jnp.arange(l) < k, jnp.maximum(basis.S - tau, 0), 0)

    def step(state: _Thresholding) -> _Thresholding:
        basis = subspace.step(with_values(a, state.y), state.basis)
        x = sampled(basis.U * shrunk(basis)[None, :], basis.V, a.rows, a.columns)
        misfit = a.data - x
        error = jnp.linalg.norm(misfit) / jnp.maximum(size, tiny)
        return _Thresholding(state.y + delta * misfit, basis, error, state.iteration + 1)

    first = subspace.init(a, l, 0)
    first = lax.fori_loop(0, FIRST, lambda _, state: subspace.step(a, state), first)
    # While tau is larger than all singular values of y nothing comes of a step: skip these.
    k0 = jnp.ceil(tau / (delta * jnp.maximum(first.S[0], tiny)))
    state = _Thresholding(
        k0 * delta * a.data,
        first,
        jnp.asarray(jnp.inf, dtype),
        jnp.zeros((), jnp.int32),
    )
    # A step that is too long lets the error grow without end.
    running = lambda s: (s.error > tol) & (s.iteration < limit)  # noqa: E731
    state = drive.run(state, running, step)
    s = shrunk(state.basis)[:k]
    S = state.basis.S
    exceeded = (S[k] > tau) if l > k else jnp.zeros((), bool)
    done = (state.error <= tol) & ~exceeded
    info = CompletionInfo(state.iteration, state.error, jnp.sum(s > 0), exceeded, done)
    used = (s > 0)[None, :]
    U, V = jnp.where(used, state.basis.U[:, :k], 0), jnp.where(used, state.basis.V[:, :k], 0)
    return LowRank(U, s, V.T), info


_compiled_thresholding = jax.jit(_thresholding, static_argnames=("k", "tol", "limit"))


def singular_value_thresholding(
    observed: Any,
    max_rank: int,
    *,
    threshold: Any = None,
    step: Any = None,
    tol: float = 5e-5,
    max_iterations: int = 1000,
    return_info: bool = False,
) -> Any:
    """Return the matrix of least nuclear norm that agrees with some of its entries.

        min |X|_*  subject to X_ij = M_ij at the observed places, in the limit of a large threshold:
        X = S_threshold(Y),   Y <- Y + step P(M - X)

    Y is sparse and X low rank. One step of subspace iteration, from the vectors of the last step,
    serves each iteration. For entries without noise; not differentiated (see `soft_impute`).

    Cost: an iteration takes two products with a sparse matrix, max_rank + 6 columns, and max_rank
    multiplications and additions an entry. Memory O((m + n) max_rank + nse).

    Args:
        observed: BCOO, BCSR or operators.Sparse (m, n): stored values are observed, zeros too.
        max_rank: static; columns at most (see Info.exceeded).
        threshold: of the singular values, > 0; default 5 sqrt(m n), the paper's, for a largest
            singular value of about sqrt(m n) (scale the entries, or the threshold).
        step: 0 < step < 2 is proved to converge; default the paper's 1.2 m n / nse.
        tol: static; |P(X - M)|_F / |P(M)|_F to reach.
        max_iterations: static.
        return_info: return (LowRank, CompletionInfo).

    Returns:
        LowRank(U, s, Vh) of shapes (m, max_rank), (max_rank,), (max_rank, n); columns beyond the
        rank are zero.

    Raises:
        TypeError: ``observed`` is no sparse matrix, or complex.
        ValueError: an entry comes twice or is not finite (where values are known); no entry;
            an argument out of range.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> from jax.experimental import sparse
        >>> L, R, noise = jax.random.normal(jax.random.key(0), (3, 60, 60))
        >>> L, R = L[:, :2], R[:2]
        >>> a = sparse.BCOO.fromdense(jnp.where(noise < 0.5, L @ R, 0))  # 69 % of the entries
        >>> X = jaxsvd.models.completion.singular_value_thresholding(a, 2)
        >>> bool(jnp.linalg.norm(X.to_dense() - L @ R) < 3e-4 * jnp.linalg.norm(L @ R))
        True

    References:
        Cai, Candes and Shen (2010), SIAM J. Optim. 20, algorithm 1 and section 5.1.
    """
    name = "completion.singular_value_thresholding"
    a = lax.stop_gradient(observed_entries(name, observed))
    k, tol_, limit = sizes(name, a, max_rank, tol, max_iterations)
    tol = max(0.0 if tol_ is None else tol_, reachable_tol(a.dtype))
    size = float(np.prod(a.shape))
    tau = 5 * size**0.5 if threshold is None else _checks.positive(name, "threshold", threshold)
    delta = 1.2 * size / a.data.size if step is None else _checks.positive(name, "step", step)
    tau, delta = jnp.asarray(tau, a.dtype), jnp.asarray(delta, a.dtype)
    result, info = _compiled_thresholding(a, tau, delta, k=k, tol=tol, limit=limit)
    return (result, info) if _checks.flag(name, "return_info", return_info) else result
