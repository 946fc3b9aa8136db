"""Block Lanczos with full reorthogonalization and thick restart: extreme eigenpairs.

One orthonormal basis V grows by a block of b columns a step from A V, and H = V^H A V stays small.
Its eigenpairs are the approximate pairs. All of A V lies in the span of V but for the newest block,
whose part outside is V_next R: so the residual of a pair with coordinates x is |R x_newest|, known
without a product. A basis is filled before it is looked at; then the pairs nearest to the wanted
end replace it (thick restart), which keeps memory at n (L + b).

Where the sizes of A lie at both ends, +s and -s, they are different eigenvalues here: nothing that
is tied as singular values is tied for the iteration.

References: Golub and Underwood (1977), "The block Lanczos method for computing eigenvalues"; Wu and
Simon (2000), SIAM J. Matrix Anal. Appl. 22 (thick restart).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..operators.base import Operator
from .orthonormal import noise, orthonormalize, polish
from .products import adjoint, adjoint_product, alike, power_of_two, product
from .subspace import start_block

WHICH = ("LA", "SA", "LM")


def rank_by(which: str, w: jax.Array) -> jax.Array:
    """Return what is larger the sooner an eigenvalue is wanted."""
    return {"LA": w, "SA": -w, "LM": jnp.abs(w)}[which]


def distances(which: str, kept: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return a sign for each kept value, (k,), and sign (kept - other), >= 0, (p, k)."""
    ones = jnp.ones_like(kept)
    sign = {"LA": ones, "SA": -ones, "LM": jnp.where(kept < 0, -1, 1).astype(kept.dtype)}[which]
    return sign, sign[None, :] * (kept[None, :] - others[:, None])


def wanted_first(which: str, w: jax.Array, Q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return eigenvalues (n,) and vectors (m, n), given in ascending order, wanted ones first."""
    if which == "SA":
        return w, Q
    if which == "LA":
        return w[::-1], Q[:, ::-1]
    order = jnp.argsort(-jnp.abs(w))
    return w[order], Q[:, order]


class Config(NamedTuple):
    """Static sizes of a run.

    Attributes:
        which: the end that is wanted: "LA" (largest), "SA" (smallest), "LM" (largest magnitude).
        k: pairs wanted.
        block: columns b multiplied at a time.
        basis: columns L of the full basis, a multiple of b.
        keep: pairs kept at a restart, a multiple of b.
        tol: residuals of all k pairs to reach, relative to the size of A.
        max_iterations: bases filled, in all.
    """

    which: str
    k: int
    block: int
    basis: int
    keep: int
    tol: float
    max_iterations: int


class State(NamedTuple):
    """A run between two steps; a pytree that can be saved.

    Attributes:
        V: the basis and, after it, the next block, (n, L + b).
        H: V^H A V, its upper triangle, (L, L).
        w: approximate eigenvalues of A / scale, wanted ones first, (L,).
        X: their coordinates (L, L).
        R: part of A V_newest outside the basis: V_next R, (b, b).
        residuals: residual norms of the k pairs, of A / scale, (k,).
        iteration: bases filled.
        scale: power of two of the size of A.
    """

    V: jax.Array
    H: jax.Array
    w: jax.Array
    X: jax.Array
    R: jax.Array
    residuals: jax.Array
    iteration: jax.Array
    scale: jax.Array


def choose(n: int, k: int, which: str, tol: float, max_iterations: int | None) -> Config | None:
    """Return the sizes for a matrix (n, n), or None where its basis would fill the whole space.

    Blocks as in `krylov.choose`; at a restart as many columns are added as were kept, eight blocks
    at least.
    """
    block = 8 if k < 32 else 16
    keep = block * -(-(k + block) // block)
    basis = keep + max(8 * block, keep)
    if basis + block > n:
        return None
    limit = 200 if max_iterations is None else max_iterations
    return Config(which, k, block, basis, keep, tol, limit)


def init(
    A: Operator, config: Config, seed: int | jax.Array, start: jax.Array | None = None
) -> State:
    """Return the state before the first step, from a start block (n, >= 0 columns) if given."""
    n, b, L = A.shape[0], config.block, config.basis
    first = orthonormalize(start_block(seed, n, b, A.dtype, start))
    # The size of A from one product with a block of norm one; a power of two divides exactly.
    largest = jnp.max(jnp.abs(A.matmat(first))) * n**0.5
    scale = power_of_two(jnp.where(largest > 0, largest, 1))
    scale = jnp.where(jnp.isfinite(largest), scale, jnp.nan)
    state = State(
        V=lax.dynamic_update_slice(jnp.zeros((n, L + b), A.dtype), first, (0, 0)),
        H=jnp.zeros((L, L), A.dtype),
        w=jnp.zeros((L,), scale.dtype),
        X=jnp.eye(L, dtype=A.dtype),
        R=jnp.zeros((b, b), A.dtype),
        residuals=jnp.full((config.k,), jnp.inf, scale.dtype),
        iteration=jnp.zeros((), jnp.int32),
        scale=scale,
    )
    return alike(state, scale)


def _expand(A: Operator, state: State, at: jax.Array, config: Config) -> State:
    """Multiply the block that starts at column ``at`` and append what follows it."""
    n, b = A.shape[0], config.block
    zero = jnp.zeros((), at.dtype)
    block = lax.dynamic_slice(state.V, (zero, at), (n, b))
    AV = A.matmat(block) / state.scale.astype(block.dtype)
    # All coefficients at once; those with the blocks to come are zero, as these columns are yet.
    coefficients = adjoint_product(state.V, AV)
    H = lax.dynamic_update_slice(state.H, coefficients[: config.basis], (zero, at))
    # Projected out here and once more below: what one projection leaves grows from block to block,
    # and over many restarts without bound.
    rest = AV - product(state.V, coefficients)
    # Another fill each time: what filled once is in the basis.
    fill = noise(n, b, A.dtype, state.iteration * (config.basis // b) + at // b)
    V_next = orthonormalize(rest, against=state.V, fill=fill)
    V = lax.dynamic_update_slice(state.V, V_next, (zero, at + b))
    return state._replace(V=V, H=H, R=adjoint_product(V_next, AV))


def _look(state: State, config: Config) -> State:
    """Decompose H and read the residuals of the wanted pairs."""
    upper = jnp.triu(state.H, 1)
    H = upper + adjoint(upper) + jnp.diag(jnp.real(jnp.diagonal(state.H))).astype(upper.dtype)
    X, w = lax.linalg.eigh(H, symmetrize_input=False)
    w, X = wanted_first(config.which, w, X)
    outside = product(state.R, X[-config.block :, : config.k])
    residuals = jnp.linalg.norm(outside, axis=0)
    return state._replace(w=w, X=X, residuals=residuals, iteration=state.iteration + 1)


def _restart(state: State, config: Config) -> State:
    """Replace the basis by the wanted pairs, the next block following them."""
    q, L, b = config.keep, config.basis, config.block
    V = jnp.zeros_like(state.V).at[:, :q].set(product(state.V[:, :L], state.X[:, :q]))
    V = V.at[:, q : q + b].set(state.V[:, L:])
    H = jnp.zeros_like(state.H).at[:q, :q].set(jnp.diag(state.w[:q]).astype(V.dtype))
    return state._replace(V=V, H=H)


def step(A: Operator, state: State, config: Config) -> State:
    """Restart, fill the basis, and look at the residuals."""
    b = config.block
    again = state.iteration > 0
    state = lax.cond(again, lambda s: _restart(s, config), lambda s: s, state)
    first = jnp.where(again, config.keep // b, 0)
    last = jnp.full_like(first, config.basis // b)
    state = lax.fori_loop(first, last, lambda i, s: _expand(A, s, i * b, config), state)
    return _look(state, config)


def converged(state: State, config: Config) -> jax.Array:
    """Return whether all k residuals are within the tolerance; NaN never is."""
    return jnp.all(state.residuals <= config.tol * jnp.max(jnp.abs(state.w)))


def running(state: State, config: Config) -> jax.Array:
    """Return whether another step is wanted and allowed; a NaN ends the run."""
    alive = jnp.isfinite(state.scale) & ~jnp.any(jnp.isnan(state.residuals))
    return alive & ~converged(state, config) & (state.iteration < config.max_iterations)


def products(state: State, config: Config) -> jax.Array:
    """Return how many vectors have been multiplied."""
    refilled = (config.basis - config.keep) * jnp.maximum(state.iteration - 1, 0)
    return config.block + config.basis + refilled


def finish(state: State, config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return eigenvalues and vectors of A, ``keep`` of them, and the largest |w| beyond k."""
    p = config.keep
    Q = polish(product(state.V[:, : config.basis], state.X[:, :p]))
    beyond = jnp.max(jnp.abs(state.w[config.k :]))
    return state.scale * state.w[:p], Q, state.scale * beyond
