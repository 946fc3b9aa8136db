"""Block Golub-Kahan-Lanczos with full reorthogonalization and thick restart: top-k triplets.

Two orthonormal bases grow by a block of b columns a step, V from A^H U and U from A V, and
B = U^H A V stays small. Its SVD gives the approximate triplets. All of A^H U lies in the span of V
but for that of the newest block, W, whose part outside is what V grows by next: so the residual of
a triplet with left coordinates x is |(1 - V V^H) W x_newest|, known without a product with A, while
A v - s u vanishes by construction. When the bases are full, the leading approximate triplets
replace them (thick restart), which keeps memory at (m + n) L + n b.

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
from .orthonormal import LOSS, append, noise, polish
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
        V: right basis (n, L), columns beyond ``size`` zero.
        W: A^H U_newest, what V grows by next, (n, b); at first the start block.
        B: U^H A V, (L, L).
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
    W: jax.Array
    B: jax.Array
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
    first = start_block(seed, n, b, A.dtype, start)
    norms = jnp.linalg.norm(first, axis=0)
    first = first / jnp.where(norms > 0, norms, 1).astype(A.dtype)[None, :]
    # The size of A from one product with columns of norm one; a power of two divides exactly.
    largest = jnp.max(jnp.abs(A.matmat(first))) * n**0.5
    scale = power_of_two(jnp.where(largest > 0, largest, 1))
    scale = jnp.where(jnp.isfinite(largest), scale, jnp.nan)
    state = State(
        U=jnp.zeros((m, L), A.dtype),
        V=jnp.zeros((n, L), A.dtype),
        W=first,
        B=jnp.zeros((L, L), A.dtype),
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
    """Append the next block to V, multiply it, and append what comes to U."""
    (m, n), b = A.shape, config.block
    scale = state.scale.astype(state.U.dtype)
    seed = 2 * state.iteration  # another fill each time: what filled once is in the basis
    at = state.size
    zero = jnp.zeros((), at.dtype)
    V_new, _, loss_V = append(state.V, state.W, state.loss[1], fill=noise(n, b, A.dtype, seed))
    AV = A.matmat(V_new) / scale
    # A V_new has parts in the newest block of U, and A^H U_new in that of V, and in no others.
    U_new, column, loss_U = append(state.U, AV, state.loss[0], fill=noise(m, b, A.dtype, seed + 1))
    # A V_new = U B_new up to rounding: what was projected out, and what is left.
    B = lax.dynamic_update_slice(state.B, column, (zero, at))
    B = lax.dynamic_update_slice(B, adjoint_product(U_new, AV), (at, at))
    return state._replace(
        U=lax.dynamic_update_slice(state.U, U_new, (zero, at)),
        V=lax.dynamic_update_slice(state.V, V_new, (zero, at)),
        W=A.rmatmat(U_new) / scale,
        B=B,
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
    n, L, b = state.V.shape[0], config.basis, config.block
    # B in quarters of its full size: the first looks cost little.
    sizes = tuple(sorted({b * -(-L * quarter // (4 * b)) for quarter in (1, 2, 3, 4)}))
    which = jnp.sum(state.size > jnp.asarray(sizes[:-1], state.size.dtype))
    X, S, Yh = _decomposition(sizes)(which, state.B)
    newest = state.size - b
    zero = jnp.zeros((), newest.dtype)
    x = lax.dynamic_slice(X, (newest, zero), (b, L))
    # What V spans of W, which a restart has to know of as well, lies in its newest block. It is
    # taken out once: no look follows another without a block between them.
    V_newest = lax.dynamic_slice(state.V, (zero, newest), (n, b))
    B_newest = lax.dynamic_slice(state.B, (newest, newest), (b, b))
    W = state.W - product(V_newest, adjoint(B_newest))
    residuals = jnp.linalg.norm(product(W, x[:, : config.k]), axis=0)
    return state._replace(W=W, S=S, X=X, Yh=Yh, residuals=residuals)


def _restart(state: State, config: Config) -> State:
    """Replace the bases by the leading triplets."""
    q = config.keep
    U = jnp.zeros_like(state.U).at[:, :q].set(product(state.U, state.X[:, :q]))
    V = jnp.zeros_like(state.V).at[:, :q].set(product(state.V, adjoint(state.Yh)[:, :q]))
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

    U, V = combine(state.U, state.X), combine(state.V, adjoint(state.Yh))
    return U, state.scale * state.S[:p], adjoint(V)
