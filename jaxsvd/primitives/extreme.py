"""The forward pass of `truncated_eigh` and `core_eigh`: checked arguments, pairs, Info."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks, _tolerances
from .._types import CoreEigh, EighResult, Info
from ..algorithms import drive, lanczos
from ..operators.adapters import as_operator
from ..operators.base import Operator
from ..operators.dense import Dense
from ..operators.rowblocks import held_by
from .hermitian import numbers
from .truncated import default_tol, reachable_tol

METHODS = ("auto", "krylov", "full")

# Size up to which the full `eigh` serves as well, half the price of an SVD: 1.5 ms and by Lanczos
# 1.4 at 200, 2.5 and 1.6 at 256 (10 pairs, 2 cores).
FULL_UP_TO = 192


class Config(NamedTuple):
    """The static part of a call.

    Attributes:
        k: pairs wanted.
        which: "LA", "SA" or "LM".
        method: "krylov" or "full", decided.
        tol: residual to reach, relative to the size of A.
        max_iterations: bases filled at most, or None.
        strict: turn what did not converge into NaN.
        core: return the core in place of the raw pairs.
    """

    k: int
    which: str
    method: str
    tol: float
    max_iterations: int | None
    strict: bool
    core: bool


class Ritz(NamedTuple):
    """The constants that the rule is evaluated with.

    Attributes:
        pairs: k + p approximate pairs, wanted ones first; all of them for method "full".
        error: relative error that they leave in a gradient, ().
    """

    pairs: EighResult
    error: jax.Array


def forward(
    A: Operator, config: Config, start: jax.Array | None, seed: int
) -> tuple[EighResult, Info]:
    """Return k + p pairs by the algorithm of the config, and what is known of the k first.

    Nothing is differentiated.
    """
    A = lax.stop_gradient(A)
    k, n, which = config.k, A.shape[0], config.which
    none = jnp.zeros((), jnp.int32)
    if config.method == "full":
        pairs = numbers(A.to_dense(), raw=not config.core)
        found = EighResult(*lanczos.wanted_first(which, *pairs))
        w = found.eigenvalues
        size = jnp.max(jnp.abs(w), initial=0)
        # Backward stable; the residuals are not measured again.
        residuals = jnp.full((k,), jnp.finfo(w.dtype).eps) * size
        last = w[k:][:1]
        beyond = jnp.max(jnp.abs(w[k:]), initial=0)
        iterations, products, done = none, none + n, jnp.isfinite(size)
    else:
        sizes = lanczos.choose(n, k, which, config.tol, config.max_iterations)
        assert sizes is not None  # `choose_method` made sure
        state = drive.run(
            lanczos.init(A, sizes, seed, start),
            lambda state: lanczos.running(state, sizes),
            lambda state: lanczos.step(A, state, sizes),
        )
        w, Q, beyond = lanczos.finish(state, sizes)
        nan = jnp.where(jnp.isfinite(state.scale), 1, jnp.nan).astype(w.dtype)
        found = EighResult(w * nan, Q * nan.astype(Q.dtype))
        w, Q = found
        # Measured, not taken from the recurrence, which holds for Hermitian matrices alone.
        scale = state.scale.astype(Q.dtype)
        rest = (A.matmat(Q[:, :k]) - Q[:, :k] * w[None, :k].astype(Q.dtype)) / scale
        residuals = state.scale * jnp.linalg.norm(rest, axis=0)
        size = jnp.maximum(jnp.max(jnp.abs(w)), beyond)
        last = w[-1:]
        iterations, products = state.iteration, lanczos.products(state, sizes) + k
        # Twice the tolerance: the measure has its own rounding.
        done = lanczos.converged(state, sizes) & jnp.all(residuals <= 2 * config.tol * size)
    by = lanczos.rank_by(which, w)
    tiny, eps = jnp.finfo(w.dtype).tiny, jnp.finfo(w.dtype).eps
    if k < n:
        gap = by[k - 1] - by[k]
        # As for `truncated_svd`: a residual mixes in what is beyond all vectors at hand; which
        # pairs are kept is decided by rounding at a tie across the cut, whatever the residuals.
        mixed = residuals / jnp.maximum(by[:k] - lanczos.rank_by(which, last), tiny)
        error = jnp.max(mixed) + jnp.where(gap > 0, eps * size / gap, jnp.inf)
    else:  # nothing is cut off
        gap, error = size, jnp.zeros((), w.dtype) + eps
    if config.method == "krylov":
        error = jnp.maximum(error, reachable_tol(w.dtype) / 4)
    zero = _tolerances.rank_tol(w.dtype, n, n) * size
    info = Info(
        residuals=residuals,
        error=beyond,
        rank=jnp.sum(jnp.abs(w[:k]) > zero),
        gap=gap,
        gradient_error=error,
        iterations=iterations,
        products=products,
        converged=done,
    )
    return lax.stop_gradient((found, info))


def arguments(
    name: str,
    a: Any,
    k: int | None,
    which: str,
    symmetrize_input: bool | None,
    method: str,
    tol: float | None,
    max_iterations: int | None,
    key: int | None,
    start: Any,
    strict: bool,
    *,
    core: bool,
) -> tuple:
    """Return (matrix or operator, config, symmetrize, start block, seed, dtype), checked."""
    if not isinstance(a, (jax.Array, np.ndarray)):
        a = as_operator(a, name=name)
        a = a.a if isinstance(a, Dense) else a
    if isinstance(a, Operator):
        if held_by(a) is not None:
            raise TypeError(
                f"{name}: `a` must be a matrix in memory or an operator made of such, got {a!r}; "
                "take truncated_svd for matrices outside memory"
            )
        if a.shape[0] != a.shape[1]:
            raise ValueError(f"{name}: `a` must have shape (n, n), got {tuple(a.shape)}")
    else:
        a = _checks.square(name, a)
    n = a.shape[-1]
    wanted = n if k is None else _checks.static_int(name, "k", k, 1, n)
    _checks.choice(name, "which", which, lanczos.WHICH)
    _checks.choice(name, "method", method, METHODS)
    if symmetrize_input is None:
        symmetrize = not isinstance(a, Operator)
    else:
        symmetrize = _checks.flag(name, "symmetrize_input", symmetrize_input)
    work = jnp.dtype(a.dtype if a.dtype.itemsize >= 4 else jnp.float32)
    tol = _checks.tolerance(name, "tol", tol, "the largest |eigenvalue|")
    tol = default_tol(work) if tol is None else tol
    if tol < reachable_tol(work):
        raise ValueError(
            f"{name}: `tol` must be at least {reachable_tol(work):.1e}, the least that {work} can "
            f"reach, got {tol}"
        )
    if max_iterations is not None:
        max_iterations = _checks.static_int(name, "max_iterations", max_iterations, 1, 10**9)
    seed = 0 if key is None else _checks.static_int(name, "key", key, 0, 2**31 - 1)
    if start is not None:
        if not isinstance(start, (EighResult, CoreEigh)):
            raise TypeError(
                f"{name}: `start` must be an earlier result, got {_checks.describe(start)}"
            )
        start = start.eigenvectors if isinstance(start, EighResult) else start.Q
        start = _checks.matrix(name, start, "start")
        if start.ndim != 2 or start.shape[0] != n:
            raise ValueError(
                f"{name}: `start` must hold vectors of length {n}, got shape {start.shape}"
            )
    strict = _checks.flag(name, "strict", strict)
    possible = lanczos.choose(n, wanted, which, tol, max_iterations) is not None
    if not possible or (method == "auto" and n <= FULL_UP_TO):
        method = "full"
    method = "krylov" if method == "auto" else method
    config = Config(wanted, which, method, tol, max_iterations, strict, core)
    return a, config, symmetrize, start, seed, jnp.dtype(a.dtype)
