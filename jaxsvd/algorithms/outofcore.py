"""Top-k triplets of a matrix outside memory, from few passes over it.

A pass reads every block of rows once and gives A^H (A X) for a wide block X: reading is what costs,
so the Krylov space grows by b columns a pass, those of block Lanczos on A^H A with full
reorthogonalization and thick restart. V spans it, W = A^H A V is kept beside it, and with
V^H W = Y diag(s^2) Y^H the residual of a triplet is known without a pass: |W y - s^2 V y| / s.

Products with A^H A square the condition: a residual of eps s_1^2 / s_i is all they can reach, and
no Ritz value is taken from them. The last pass multiplies A by the p leading Ritz vectors, and
U, S, V come from the QR decomposition of A V, where nothing is squared; A^H U comes from the same
pass, as W V' / S, where that is exact enough for the tolerance to be certified, or else from one
more pass. Triplets that fall short go through subspace iteration, two passes a step.

A step takes in one block of rows (`algorithms.passes`), so the state can be saved in the middle of
a pass.

References: Golub and Underwood (1977), "The block Lanczos method"; Wu and Simon (2000), SIAM J.
Matrix Anal. Appl. 22 (thick restart); Halko, Martinsson, Shkolnisky and Tygert (2011), SIAM J. Sci.
Comput. 33 (few passes over a matrix on disk).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _tolerances
from .._types import SVDResult
from ..operators.base import Operator
from ..operators.rowblocks import add_adjoint_rows, add_rows, aligned
from .adaptive import tail_errors
from .orthonormal import noise, orthonormalize
from .products import adjoint, adjoint_product, product
from .router import inner
from .subspace import random_block

# What a state waits for: products A^H (A X) for the Krylov space; A X and A^H (A X) for the
# triplets; A^H U; A X alone, for the residuals of a randomized SVD; nothing.
KRYLOV, RANGE, ADJOINT, CHECK, DONE = range(5)

# Columns beyond k in the last passes.
EXTRA = 8

# Blocks of the Krylov space before a restart.
BLOCKS = 8

# Passes at most where nothing else is said.
MAX_PASSES = 100


class Config(NamedTuple):
    """Static sizes of a run, and what ends it.

    Attributes:
        k: triplets wanted.
        block: columns b multiplied in a pass.
        basis: columns L of the full Krylov space.
        keep: Ritz vectors kept at a restart.
        columns: p, Ritz vectors of the last passes.
        tol: residuals to reach, relative to s_1.
        max_passes: products with A^H A at most.
        power: number of passes of a randomized SVD; None: until the residuals are small.
        certify: whether a randomized SVD measures its residuals.
        norm: |A|_F where the rank is wanted whose relative error is ``tol``.
    """

    k: int
    block: int
    basis: int
    keep: int
    columns: int
    tol: float
    max_passes: int
    power: int | None = None
    certify: bool = True
    norm: float | None = None


class State(NamedTuple):
    """A run between two blocks of rows; a pytree that can be saved.

    Attributes:
        phase: what the pass is for.
        row: rows of the pass taken in.
        passes: passes done.
        products: vectors multiplied by A or A^H.
        size: columns of the Krylov space in use.
        V: its orthonormal basis, (n, L), columns beyond ``size`` zero.
        W: A^H A V / scale^2, (n, L).
        X: the block that the pass multiplies, (n, b or p); V of the triplets once they are there.
        Z: the sum over the rows so far, (n, b or p).
        lost: what it has lost to rounding.
        scale: power of two of the size of A.
        Y: A X / scale, (m, p), on the host, its first ``row`` rows set; (0, p) before RANGE.
        U: left vectors (m, p); (0, p) before they are known.
        S: singular values of A / scale, (p,).
        residuals: of the triplets of A / scale, (p,).
    """

    phase: Any
    row: Any
    passes: Any
    products: Any
    size: Any
    V: Any
    W: Any
    X: Any
    Z: Any
    lost: Any
    scale: Any
    Y: Any
    U: Any
    S: Any
    residuals: Any


def choose(
    m: int, n: int, k: int, tol: float, max_passes: int | None, norm: float | None = None
) -> Config:
    """Return the sizes for a matrix (m, n); with its norm for the rank that leaves tol of it.

    A pass costs its reading up to some 64 columns, so blocks are as wide as k and a margin, in
    multiples of 16. Where the full Krylov space would be all of C^n, one pass with X = I takes it.
    """
    block = 16 * -(-(k + EXTRA) // 16)
    basis = BLOCKS * block
    if norm is not None:  # the space grows until it holds the rank
        block = 16 * -(-min(k + EXTRA, 64) // 16)
        basis = block * -(-(k + 4 * block) // block)
    if basis + block > n:
        block = basis = n
    columns = min(k + EXTRA, m, n)
    limit = MAX_PASSES if max_passes is None else max_passes
    return Config(k, block, basis, 2 * block, columns, tol, limit, norm=norm)


def fixed(k: int, columns: int, power: int, certify: bool, tol: float) -> Config:
    """Return the sizes of a randomized SVD: a fixed number of passes."""
    return Config(k, columns, columns, columns, columns, tol, power, power, certify)


# For some rows, which are in memory: one program.
_take_in_rows, _take_in_rows_adjoint = jax.jit(add_rows), jax.jit(add_adjoint_rows)


@functools.partial(jax.jit, static_argnames="p")
def _grow(V, W, X, Z, size, number, p: int):
    """Append X and A^H A X to the space; return its Ritz vectors and values, and the next block."""
    (n, L), b = V.shape, X.shape[1]
    at = (jnp.zeros((), size.dtype), size)
    V, W = lax.dynamic_update_slice(V, X, at), lax.dynamic_update_slice(W, Z, at)
    size = size + b
    T = adjoint_product(V, W)
    unused = jnp.where(jnp.arange(L, dtype=size.dtype) < size, 0, -1).astype(T.dtype)
    theta, Y = jnp.linalg.eigh((T + adjoint(T)) / 2 + jnp.diag(unused), symmetrize_input=False)
    theta, Y = theta[::-1], Y[:, ::-1]
    S = jnp.sqrt(jnp.maximum(theta, 0))
    ritz = product(V, Y[:, :p])
    off = product(W, Y[:, :p]) - ritz * theta[None, :p].astype(V.dtype)
    residuals = jnp.linalg.norm(off, axis=0)
    if b < L:
        following = orthonormalize(Z, against=V, fill=noise(n, b, V.dtype, number))
    else:
        following = X
    return V, W, Y, S, ritz, residuals, following


@functools.partial(jax.jit, static_argnames="keep")
def _restart(V, W, Y, keep: int):
    """Return the space of the leading Ritz vectors."""
    zeros = jnp.zeros_like(V)
    return (
        zeros.at[:, :keep].set(product(V, Y[:, :keep])),
        zeros.at[:, :keep].set(product(W, Y[:, :keep])),
    )


@jax.jit
def _triplets(Y, X, Z):
    """Return the Ritz triplets of A X = Y, and the residuals as far as Z = A^H Y tells them."""
    m, p = Y.shape
    Q = orthonormalize(Y, fill=noise(m, p, Y.dtype))
    left, S, Rh = inner(adjoint_product(Q, Y))
    right = adjoint(Rh)
    V = product(X, right)
    divisor = jnp.maximum(S, jnp.finfo(S.dtype).tiny)[None, :].astype(V.dtype)
    off = product(Z, right) / divisor - V * S[None, :].astype(V.dtype)
    return product(Q, left), S, V, jnp.linalg.norm(off, axis=0)


@jax.jit
def _certify(V, S, Z):
    """Return the residuals with Z = A^H U, and the next basis of subspace iteration."""
    off = Z - V * S[None, :].astype(V.dtype)
    n, p = V.shape
    return jnp.linalg.norm(off, axis=0), orthonormalize(Z, fill=noise(n, p, V.dtype))


@jax.jit
def _from_adjoint(U, Z):
    """Return the triplets of U U^H A = U Z^H."""
    n, p = Z.shape
    Q = orthonormalize(Z, fill=noise(n, p, Z.dtype))
    left, S, Rh = inner(adjoint(adjoint_product(Q, Z)))
    return product(U, left), S, product(Q, adjoint(Rh))


@jax.jit
def _right_residuals(Y, U, S, residuals):
    return jnp.maximum(residuals, jnp.linalg.norm(Y - U * S[None, :].astype(U.dtype), axis=0))


def init(A: Operator, config: Config, key: jax.Array, start: Any = None) -> State:
    """Return the state before the first block, from right vectors (n, any number) if given."""
    n, b, L = A.shape[1], config.block, config.basis
    if config.power is None and b == n:
        X = jnp.eye(n, dtype=A.dtype)
    elif config.power is not None:
        X = random_block(key, n, b, A.dtype)
    else:
        X = random_block(jax.random.fold_in(key, 0), n, b, A.dtype)
        if start is not None:
            take = min(b, start.shape[1])
            X = X.at[:, :take].set(start[:, :take].astype(X.dtype))
        X = orthonormalize(X)
    real = jnp.finfo(A.dtype).dtype
    space = jnp.zeros((n, L if config.power is None else 0), A.dtype)
    state = State(
        *(KRYLOV, 0, 0, 0, 0),
        *(space, space, X, jnp.zeros_like(X), jnp.zeros_like(X)),
        *(jnp.zeros((), real), np.zeros((0, config.columns), A.dtype)),
        *(jnp.zeros((0, config.columns), A.dtype), jnp.zeros((config.columns,), real)),
        jnp.full((config.columns,), jnp.inf, real),
    )
    return _ranging(state, X) if config.power == 0 else state


def _begin(state: State, phase: int, X: jax.Array, **changes: Any) -> State:
    zeros = jnp.zeros_like(X)
    return state._replace(phase=phase, row=0, X=X, Z=zeros, lost=zeros, **changes)


def _ranging(state: State, X: jax.Array) -> State:
    return _begin(state, RANGE, X)


def take_in(A: Operator, state: State, rows: int, part: Operator | None = None) -> State:
    """Return the state after the next rows of the pass, whose operator is given; None: after all.

    What reads the rows may fill their buffer again when this returns.
    """
    phase, row = int(state.phase), int(state.row)
    stop = row + rows
    add, add_adjoint = _take_in_rows, _take_in_rows_adjoint
    if part is None:  # products with A, each a pass of its own
        part, add, add_adjoint = A, add_rows, add_adjoint_rows
    if phase == ADJOINT:
        U = jnp.asarray(state.U)[row:stop]
        Z, lost = add_adjoint(part, U, state.Z, state.lost, state.scale)
        jax.block_until_ready((Z, lost))
        return state._replace(row=stop, Z=Z, lost=lost)
    Y, Z, lost, scale = add(part, state.X, state.Z, state.lost, state.scale)
    jax.block_until_ready((Z, lost))
    if phase == KRYLOV:
        return state._replace(row=stop, Z=Z, lost=lost, scale=scale)
    kept = state.Y
    if row == 0:
        kept = aligned(A.shape[0], Y.shape[1], np.dtype(Y.dtype))
    elif scale != state.scale:  # the state keeps its own
        kept = kept.copy()
        kept[:row] *= np.asarray(state.scale / scale)
    kept[row:stop] = Y
    return state._replace(row=stop, Z=Z, lost=lost, scale=scale, Y=kept)


def turn(state: State, config: Config) -> State:
    """Return the state at the beginning of the next pass, from that at the end of one."""
    phase, columns = int(state.phase), state.X.shape[1]
    Z = state.Z + state.lost
    state = state._replace(
        passes=int(state.passes) + 1,
        products=int(state.products) + columns * (2 if phase in (KRYLOV, RANGE) else 1),
    )
    if phase == KRYLOV:
        return _after_krylov(state, Z, config)
    if phase == RANGE:
        U, S, V, residuals = _triplets(jax.device_put(state.Y), state.X, Z)
        state = state._replace(U=U, S=S, X=V, residuals=residuals, Y=state.Y[:0])
        if config.power is None and _certified(state, config):
            return state._replace(phase=DONE)
        return _begin(state, ADJOINT, V)
    if phase == CHECK:
        residuals = _right_residuals(jax.device_put(state.Y), state.U, state.S, state.residuals)
        return state._replace(phase=DONE, residuals=residuals, Y=state.Y[:0])
    if config.power is not None:
        U, S, V = _from_adjoint(state.U, Z)
        state = state._replace(U=U, S=S, residuals=jnp.zeros_like(S))
        return _begin(state, CHECK if config.certify else DONE, V)
    residuals, following = _certify(state.X, state.S, Z)
    state = state._replace(residuals=residuals)
    worst = float(jnp.max(residuals[: config.k]))
    if not worst > config.tol * float(state.S[0]) or int(state.passes) >= config.max_passes:
        return state._replace(phase=DONE)  # NaN ends it too
    return _ranging(state, following)


def _after_krylov(state: State, Z: jax.Array, config: Config) -> State:
    if config.power is not None:
        n, l = Z.shape
        last = int(state.passes) == config.power
        X = orthonormalize(Z, passes=8 if last else 1, fill=noise(n, l, Z.dtype))
        return _begin(state, RANGE if last else KRYLOV, X)
    b, size, passes = state.X.shape[1], int(state.size), int(state.passes)
    V, W, Y, S, ritz, residuals, following = _grow(
        state.V, state.W, state.X, Z, np.int32(size), np.int32(passes), config.columns
    )
    size += b
    state = state._replace(V=V, W=W, size=size, S=S[: config.columns])
    values, off = np.asarray(S, np.float64), np.asarray(residuals, np.float64)
    if config.norm is not None:
        unit = config.norm / float(state.scale or 1)
        errors = tail_errors(S[: config.k], jnp.asarray(unit, S.dtype))
        done = bool(jnp.any(errors <= 0.99 * config.tol)) or size + b > config.basis
    else:
        # The squared residuals know nothing below the rounding of A^H A.
        k, s1 = config.k, values[0]
        rounding = 10 * _tolerances.eps(V.dtype) * s1**2
        small = off[:k] <= np.maximum(0.9 * config.tol * s1 * values[:k], rounding)
        done = size >= config.columns and bool(np.all(small))
    if done or b == config.basis or passes >= config.max_passes or np.isnan(off).any():
        return _ranging(state, ritz)
    if size + b > config.basis:
        V, W = _restart(V, W, Y, config.keep)
        state = state._replace(V=V, W=W, size=config.keep)
    return _begin(state, KRYLOV, following)


def _certified(state: State, config: Config) -> bool:
    """Return whether the residuals are within the tolerance, their own rounding included."""
    if config.norm is not None:
        return True
    S, off = (np.asarray(x, np.float64)[: config.k] for x in (state.S, state.residuals))
    s1 = S[0]
    if not np.isfinite(s1) or s1 == 0:
        return True
    rounding = 10 * _tolerances.eps(np.asarray(state.S).dtype) * s1**2 / np.maximum(S, 1e-300)
    return bool(np.all(off + rounding <= config.tol * s1))


class Found(NamedTuple):
    """What a run leaves.

    Attributes:
        ritz: p triplets, the k wanted first.
        residuals: of them, (p,).
        iterations: passes.
        products: vectors multiplied by A or A^H.
        converged: whether the k wanted are within the tolerance.
    """

    ritz: SVDResult
    residuals: jax.Array
    iterations: jax.Array
    products: jax.Array
    converged: jax.Array


def finish(state: State, config: Config) -> Found:
    """Return the triplets of a run that is done."""
    U, S, V, residuals, scale = (
        jnp.asarray(x) for x in (state.U, state.S, state.X, state.residuals, state.scale)
    )
    done = jnp.all(residuals[: config.k] <= config.tol * S[0])
    unit = jnp.where(scale > 0, scale, 1)
    ritz = SVDResult(U, unit * S, adjoint(V))
    count = lambda x: jnp.asarray(int(x), jnp.int32)  # noqa: E731
    return Found(ritz, unit * residuals, count(state.passes), count(state.products), done)
