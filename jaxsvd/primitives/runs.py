"""What the algorithms for k triplets leave behind, and the constants that the rules take of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from .. import _tolerances
from .._types import SVDResult
from ..algorithms.router import solve, without_gathering
from ..operators.base import Operator
from ..rules.core import full_numbers
from ..rules.truncated import Numbers, iterative_numbers
from .disturbance import disturbing, refined


class Config(NamedTuple):
    """The static part of a call.

    Attributes:
        k: triplets wanted.
        method: "krylov", "subspace", "gram" or "full", decided.
        tol: residual to reach, relative to s_1.
        max_iterations: steps at most, or None.
        strict: turn what did not converge into NaN.
    """

    k: int
    method: str
    tol: float
    max_iterations: int | None
    strict: bool


class Run(NamedTuple):
    """What the forward pass leaves: constants.

    Attributes:
        ritz: k + p approximate triplets, all of them for method "full".
        residuals: of the k triplets, (k,).
        iterations: steps done.
        products: vectors multiplied by A or A^H.
        converged: whether all residuals are within the tolerance.
    """

    ritz: SVDResult
    residuals: jax.Array
    iterations: jax.Array
    products: jax.Array
    converged: jax.Array


class Ritz(NamedTuple):
    """The constants that the rule is evaluated with.

    Attributes:
        U: k + p left vectors, (m, k + p).
        S: values (k + p,).
        Vh: right vectors (k + p, n).
        error: relative error that these triplets leave in a gradient, ().
    """

    U: jax.Array
    S: jax.Array
    Vh: jax.Array
    error: jax.Array


def default_tol(dtype: DTypeLike) -> float:
    """Return the default tolerance: 1e-5 in single precision, 1e-10 in double.

    Set by the gradient, whose error is about tol s_1 / (s_k - s_{k+1}).
    """
    return 1e-5 if _tolerances.eps(dtype) > 1e-10 else 1e-10


def reachable_tol(dtype: DTypeLike) -> float:
    """Return the smallest tolerance that rounding lets a residual reach: 20 eps."""
    return 20 * _tolerances.eps(dtype)


def gradient_error(run: Run, config: Config) -> jax.Array:
    """Return the relative error to expect of a gradient at the triplets of a run.

        max_{j <= k} r_j / (s_j - s_l) + eps s_1 / (s_k - s_{k+1})

    The residual of a Ritz triplet is orthogonal to all l Ritz vectors, those beyond k included, so
    it is a discarded value below s_l that it mixes in. Rounding, and the errors of the values that
    make up the gap, know no such restraint: a tie across the cut has no derivative.
    """
    k, S = config.k, run.ritz.S
    beyond, last = (S[k], S[-1]) if S.shape[0] > k else (jnp.zeros((), S.dtype),) * 2
    last = beyond if config.method == "full" else last
    tiny, eps = jnp.finfo(S.dtype).tiny, jnp.finfo(S.dtype).eps
    mixed = jnp.max(run.residuals / jnp.maximum(S[:k] - last, tiny), initial=0)
    error = mixed + eps * S[0] / jnp.maximum(S[k - 1] - beyond, tiny)
    return error if config.method == "full" else jnp.maximum(error, reachable_tol(S.dtype) / 4)


def constants(A: Operator, run: Run, config: Config) -> Ritz:
    """Return what the rule needs of a run."""
    return settled(A, Ritz(*run.ritz, gradient_error(run, config)), config)


def settled(A: Operator, ritz: Ritz, config: Config) -> Ritz:
    """Return the constants as they are, or as a disturbance moves them."""
    A, ritz = lax.stop_gradient((A, ritz))
    if disturbing.value is None or config.method in ("full", "passes"):
        return ritz  # "full" has met its disturbance in `forward`
    # The solves go further too, so that what they leave open shows in the gradient.
    ritz = ritz._replace(error=ritz.error / 100)

    def solve_small(B):
        return solve(B, without_gathering(B.shape))

    numbers = rule_numbers(A, ritz, config)
    triplets = refined(A, SVDResult(*ritz[:3]), config.k, numbers, solve_small)
    return ritz._replace(U=triplets.U, S=triplets.S, Vh=triplets.Vh)


def rule_numbers(A: Operator, ritz: Ritz, config: Config) -> Numbers:
    """Return the constants of the rule's solves: closed forms, or conjugate gradients.

    Conjugate gradients are as exact as the triplets are, or as rounding lets them be.
    """
    triplets = SVDResult(*ritz[:3])
    if config.method == "full":
        return full_numbers(triplets, config.k)
    return iterative_numbers(
        A,
        triplets,
        config.k,
        tol=jnp.clip(ritz.error, reachable_tol(A.dtype), 0.1),
        max_iterations=500,
        strict=config.strict,
    )
