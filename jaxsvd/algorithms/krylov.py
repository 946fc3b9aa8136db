"""Block Golub-Kahan-Lanczos with full reorthogonalization and thick restart: top-k triplets.

Two orthonormal bases grow by a block of b columns a step, U from A V and V from A^H U, and
B = U^H A V stays small. Its SVD gives the approximate triplets. All of A^H U lies in the span of V
but for the newest block, whose part outside is V_next R: so the residual of a triplet with left
coordinates x is |R x_newest|, known without a product, while A v - s u vanishes by construction.
When the bases are full, the leading approximate triplets replace them (thick restart), which keeps
memory at (m + n)(L + b).

References: Golub, Luk and Overton (1981), ACM TOMS 7 (the block method); Baglama and Reichel
(2005), SIAM J. Sci. Comput. 27, and Wu and Simon (2000) (thick restart).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from .._types import SVDResult
from ..operators.base import Operator
from .dense import checked, quiet
from .orthonormal import LOSS, append, noise, orthonormalize, polish
from .polar import polar
from .products import adjoint, adjoint_product, alike, power_of_two, product
from .subspace import start_block


class Config(NamedTuple):
    """Static sizes of a run.

    Attributes:
        k: triplets wanted.
        block: columns b multiplied at a time.
        basis: columns L of the full bases, a multiple of b.
        keep: triplets kept at a restart, a multiple of b.
        tol: residuals of all k triplets to reach, relative to s_1.
        max_iterations: steps of one block, in all.
    """

    k: int
    block: int
    basis: int
    keep: int
    tol: float
    max_iterations: int


class State(NamedTuple):
    """A run between two steps; a pytree that can be saved.

    Attributes:
        U: left basis (m, L), columns beyond ``size`` zero.
        V: right basis (n, L + b): the basis and, after it, the next block.
        B: U^H A V, (L, L).
        R: part of A^H U_newest outside the basis: V_next R, (b, b).
        size: columns in use.
        iteration: steps done.
        S: approximate singular values of A / scale, (L,).
        X: left coordinates of the approximate triplets (L, L).
        Yh: right coordinates, conjugate transposed (L, L).
        residuals: residual norms of the k triplets, of A / scale, (k,).
        ahead: blocks to add before the next look at them.
        loss: of orthogonality in the newest blocks of U and V, in units of rounding, (2,).
        scale: power of two of the size of A.
    """

    U: jax.Array
    V: jax.Array
    B: jax.Array
    R: jax.Array
    size: jax.Array
    iteration: jax.Array
    S: jax.Array
    X: jax.Array
    Yh: jax.Array
    residuals: jax.Array
    ahead: jax.Array
    loss: jax.Array
    scale: jax.Array


# Blocks from the first look at the small SVD to the second; from there on as many as the decay of
# the residuals foretells, and not more than twice these. A look costs as much as two blocks of a
# 4096 x 4096, and on CPU 15 ms more where OpenBLAS's threads go on spinning (`jaxsvd._openblas`).
LOOK_EVERY = 4


def choose(m: int, n: int, k: int, tol: float, max_iterations: int | None) -> Config | None:
    """Return the sizes for a matrix (m, n), or None where its bases would fill the whole space.

    Blocks of 16 columns cost 1.5 times those of 8 (4096 x 4096, CPU), and narrow blocks converge in
    fewer products: 8 until k = 32, 16 from there. Bases of 4 k columns hold the 13 blocks that
    s_i = i^-1/2 needs for k = 50 without a restart; for k = 100 of a sparse matrix, where the bases
    cost more than the products, 3 k columns take 0.8 of the time.
    """
    block = 8 if k < 32 else 16
    keep = block * -(-(k + block) // block)
    basis = block * -(-max((4 if k <= 64 else 3) * k, keep + 4 * block) // block)
    if basis + block > min(m, n):
        return None
    if max_iterations is None:
        max_iterations = 100 * basis // block
    return Config(k, block, basis, keep, tol, max_iterations)


def init(
    A: Operator, config: Config, seed: int | jax.Array, start: jax.Array | None = None
) -> State:
    """Return the state before the first step, from a start block (n, >= 0 columns) if given."""
    (m, n), b, L = A.shape, config.block, config.basis
    first = start_block(seed, 0, n, b, A.dtype)
    if start is not None:  # all start vectors take part in the block, by random combination
        mix = start_block(seed, 1, start.shape[1], b, A.dtype)
        first = product(start, mix) + 1e-3 * first
    first = orthonormalize(first)
    # The size of A from one product with a block of norm one; a power of two divides exactly.
    largest = jnp.max(jnp.abs(A.matmat(first))) * n**0.5
    scale = power_of_two(jnp.where(largest > 0, largest, 1))
    scale = jnp.where(jnp.isfinite(largest), scale, jnp.nan)
    V = jnp.zeros((n, L + b), A.dtype)
    state = State(
        U=jnp.zeros((m, L), A.dtype),
        V=lax.dynamic_update_slice(V, first, (0, 0)),
        B=jnp.zeros((L, L), A.dtype),
        R=jnp.zeros((b, b), A.dtype),
        size=jnp.zeros((), jnp.int32),
        iteration=jnp.zeros((), jnp.int32),
        S=jnp.zeros((L,), scale.dtype),
        X=jnp.eye(L, dtype=A.dtype),
        Yh=jnp.eye(L, dtype=A.dtype),
        residuals=jnp.full((config.k,), jnp.inf, scale.dtype),
        # A basis of no more than k columns holds no k triplets to look at.
        ahead=jnp.full((), max(LOOK_EVERY, config.k // b + 1), jnp.int32),
        loss=jnp.zeros((2,), scale.dtype),
        scale=scale,
    )
    return alike(state, scale)


def _expand(A: Operator, state: State, config: Config) -> State:
    """Multiply the next block and append it to both bases."""
    (m, n), b = A.shape, config.block
    scale = state.scale.astype(state.U.dtype)
    seed = 2 * state.iteration  # another fill each time: what filled once is in the basis
    at = state.size
    zero = jnp.zeros((), at.dtype)
    block = lax.dynamic_slice(state.V, (zero, at), (n, b))
    AV = A.matmat(block) / scale
    # A V_new has parts in the newest block of U, and A^H U_new in that of V, and in no others.
    U_new, column, loss_U = append(state.U, AV, state.loss[0], fill=noise(m, b, A.dtype, seed))
    U = lax.dynamic_update_slice(state.U, U_new, (zero, at))
    # A V_new = U B_new up to rounding: what was projected out, and what is left.
    B = lax.dynamic_update_slice(state.B, column, (zero, at))
    B = lax.dynamic_update_slice(B, adjoint_product(U_new, AV), (at, at))
    AHU = A.rmatmat(U_new) / scale
    V_next, _, loss_V = append(state.V, AHU, state.loss[1], fill=noise(n, b, A.dtype, seed + 1))
    V = lax.dynamic_update_slice(state.V, V_next, (zero, at + b))
    R = adjoint_product(V_next, AHU)
    return state._replace(
        U=U,
        V=V,
        B=B,
        R=R,
        size=at + b,
        iteration=state.iteration + 1,
        loss=jnp.stack([loss_U, loss_V]),
    )


def _leading_on_cpu(sizes: tuple[int, ...], which: jax.Array, B: jax.Array) -> SVDResult:
    L = sizes[-1]

    def decompose(p: int, B: jax.Array):
        X, S, Yh = quiet(B[..., :p, :p])
        rest = jnp.diag((jnp.arange(L) >= p).astype(B.dtype))
        one = [(0, 0)] * (B.ndim - 2) + [(0, L - p)]
        rest = jnp.broadcast_to(rest, (*B.shape[:-2], L, L))
        X, Yh = (rest + jnp.pad(Z, [*one, (0, L - p)]) for Z in (X, Yh))
        return SVDResult(X, jnp.pad(S, one), Yh)

    found = lax.switch(which, [functools.partial(decompose, p) for p in sizes], B)
    # Once for all sizes, which compiles in half the time: B is zero beyond the part in use.
    return checked(B, found)


def _leading_elsewhere(sizes: tuple[int, ...], which: jax.Array, B: jax.Array) -> SVDResult:
    # One size, since there products are cheap and programs are not. The rest of the diagonal is
    # made larger than all singular values, which keeps it apart, and taken off the front again.
    used = sum(jnp.where(which == i, p, 0) for i, p in enumerate(sizes))
    norm = jnp.linalg.norm(B, axis=(-2, -1), keepdims=True)
    size = jnp.where(norm > 0, 1.25 * norm, 1).astype(B.dtype)
    places = jnp.arange(sizes[-1])
    rest = jnp.broadcast_to(jnp.diag(places >= used), B.shape)
    X, S, Yh = polar(jnp.where(rest, size, B), False)
    X, S, Yh = (jnp.roll(Z, used - sizes[-1], axis) for Z, axis in ((X, -1), (S, -1), (Yh, -2)))
    kept = jnp.broadcast_to(places < used, S.shape) & (norm[..., 0] > 0)
    return SVDResult(X, jnp.where(kept, S, 0), Yh)


@functools.cache
def _decomposition(sizes: tuple[int, ...]) -> Callable:
    """Return (which, B) -> X, S, Yh of the leading ``sizes[which]`` rows and columns of B.

    What is mapped over shares the largest ``which``, and one SVD of all runs (see `router`).
    """

    @custom_vmap
    def run(which, B):
        on_cpu, elsewhere = (
            functools.partial(f, sizes) for f in (_leading_on_cpu, _leading_elsewhere)
        )
        return lax.platform_dependent(which, B, cpu=on_cpu, default=elsewhere)

    @run.def_vmap
    def _(axis_size, in_batched, which, B):
        if not in_batched[1]:
            B = jnp.broadcast_to(B, (axis_size, *B.shape))
        found = run(jnp.max(which), B)
        return found, jax.tree.map(lambda _: True, found)

    return run


def _look(state: State, config: Config) -> State:
    """Decompose the part of B in use and read the residuals of its leading triplets."""
    L, b = config.basis, config.block
    # B in quarters of its full size: the first looks cost little.
    sizes = tuple(sorted({b * -(-L * quarter // (4 * b)) for quarter in (1, 2, 3, 4)}))
    which = jnp.sum(state.size > jnp.asarray(sizes[:-1], state.size.dtype))
    X, S, Yh = _decomposition(sizes)(which, state.B)
    newest = state.size - b
    x = lax.dynamic_slice(X, (newest, jnp.zeros((), newest.dtype)), (b, L))
    outside = product(state.R, x[:, : config.k])
    return state._replace(S=S, X=X, Yh=Yh, residuals=jnp.linalg.norm(outside, axis=0))


def _right(state: State, config: Config) -> jax.Array:
    """Return the right coordinates (L + b, L), none of them along the next block.

    So V is multiplied whole: XLA copies the slice of a matrix before it multiplies it.
    """
    return jnp.pad(adjoint(state.Yh), ((0, config.block), (0, 0)))


def _restart(state: State, config: Config) -> State:
    """Replace the bases by the leading triplets, the next block following them."""
    q, L, b = config.keep, config.basis, config.block
    U = jnp.zeros_like(state.U).at[:, :q].set(product(state.U, state.X[:, :q]))
    kept = product(state.V, _right(state, config)[:, :q])
    V = jnp.zeros_like(state.V).at[:, :q].set(kept)
    V = V.at[:, q : q + b].set(state.V[:, L:])
    B = jnp.zeros_like(state.B).at[:q, :q].set(jnp.diag(state.S[:q]).astype(U.dtype))
    # What follows has parts in all columns that were kept.
    loss = jnp.full_like(state.loss, LOSS)
    return state._replace(U=U, V=V, B=B, size=jnp.full_like(state.size, q), loss=loss)


def _foretold(before: State, after: State, blocks: jax.Array, config: Config) -> jax.Array:
    """Return how many blocks more would reach the tolerance at the rate of the last ones.

    They aim at a quarter of it: a look one block too early costs more than the block.
    """

    def log_of_worst(state):
        return jnp.log(jnp.max(state.residuals) / state.S[0])

    last = log_of_worst(after)
    rate = (log_of_worst(before) - last) / blocks.astype(last.dtype)
    missing = jnp.ceil((last - jnp.log(jnp.full_like(last, config.tol / 4))) / rate)
    known = jnp.isfinite(missing) & jnp.isfinite(rate) & (rate > 0)
    wanted = jnp.where(known, jnp.clip(missing, 1, 2 * LOOK_EVERY), LOOK_EVERY)
    return wanted.astype(before.ahead.dtype)


def step(A: Operator, state: State, config: Config) -> State:
    """Restart if the bases are full, add the blocks until the next look, and look."""
    # A loop of no or one round, since XLA copies both bases to and from a `lax.cond`: a restart of
    # 80000 x 304 takes 0.1 s in place and 0.25 s so.
    full = (state.size >= config.basis).astype(jnp.int32)
    state = lax.fori_loop(0, full, lambda _, s: _restart(s, config), state)
    blocks = jnp.minimum(state.ahead, (config.basis - state.size) // config.block)
    after = lax.fori_loop(0, blocks, lambda _, s: _expand(A, s, config), state)
    after = _look(after, config)
    return after._replace(ahead=_foretold(state, after, blocks, config))


def converged(state: State, config: Config) -> jax.Array:
    """Return whether all k residuals are within the tolerance; NaN never is."""
    enough = state.size >= config.k
    return enough & jnp.all(state.residuals <= config.tol * state.S[0])


def running(state: State, config: Config) -> jax.Array:
    """Return whether another step is wanted and allowed; a NaN ends the run."""
    alive = jnp.isfinite(state.scale) & ~jnp.any(jnp.isnan(state.residuals))
    return alive & ~converged(state, config) & (state.iteration < config.max_iterations)


def finish(state: State, config: Config, extra: int = 0):
    """Return U (m, k + extra), S (k + extra,), Vh (k + extra, n) of A from the bases."""
    k, p = config.k, config.k + extra

    def combine(basis, coordinates):
        # Apart, so that a program that does not differentiate leaves the extra ones out.
        first, rest = product(basis, coordinates[:, :k]), product(basis, coordinates[:, k:p])
        return jnp.concatenate([polish(first), rest], axis=1)

    U, V = combine(state.U, state.X), combine(state.V, _right(state, config))
    return U, state.scale * state.S[:p], adjoint(V)
