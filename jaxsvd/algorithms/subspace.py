"""Subspace iteration with Rayleigh-Ritz at every step: two products, a certified residual.

One step multiplies an orthonormal basis V of l columns by A, takes the SVD of the projected matrix,
(U, S, V) with A V = U S, and multiplies U by A^H: Z = A^H U is both the certificate, the residual
of triplet i being |Z_i - s_i V_i| while A v - s u vanishes, and, orthonormalized, the next basis.

It is the step of `truncated_svd(method="subspace")`, of `track` and, with a fixed number of steps,
of `randomized_svd`.

References: Halko, Martinsson and Tropp (2011), SIAM Review 53, algorithms 4.4 and 5.1; Stewart
(1976), Numer. Math. 25 (Rayleigh-Ritz acceleration).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .._types import SVDResult
from ..operators.base import Operator
from .orthonormal import noise, orthonormalize
from .products import adjoint, adjoint_product, alike, product
from .router import inner


class State(NamedTuple):
    """A tracked subspace; a pytree that can be saved.

    Attributes:
        U: left vectors (m, l) of the last step.
        S: singular values (l,) of the last step.
        V: right vectors (n, l) of the last step.
        next: orthonormal basis (n, l) for the next step.
        residuals: |A^H u_i - s_i v_i| of the last step, (l,).
        iteration: steps done.
    """

    U: jax.Array
    S: jax.Array
    V: jax.Array
    next: jax.Array
    residuals: jax.Array
    iteration: jax.Array


def random_block(key: jax.Array, rows: int, columns: int, dtype) -> jax.Array:
    """Return a Gaussian block with columns of norm about one."""
    return jax.random.normal(key, (rows, columns), dtype) / rows**0.5


def start_block(
    seed: int | jax.Array,
    rows: int,
    columns: int,
    dtype: DTypeLike,
    start: jax.Array | None = None,
) -> jax.Array:
    """Return a block (rows, columns) to start from, with columns of norm about one.

    Of `noise`, where the theory of a sketch does not ask for Gaussians: those take a tenth of the
    first call of `truncated_svd` to compile.

    Args:
        seed: of which the last 31 bits count.
        rows: of the block.
        columns: of the block.
        dtype: of the block.
        start: vectors (rows, >= 0) that all take part in the block, by random combination.
    """
    # Far from the blocks that fill up deficient ones, whose seeds count from 0.
    seed = jnp.asarray(seed).astype(jnp.uint32) * np.uint32(2) + np.uint32(2**31)
    first = noise(rows, columns, dtype, seed)
    if start is None:
        return first
    return product(start, noise(start.shape[1], columns, dtype, seed + np.uint32(1))) + 1e-3 * first


def gram_vectors(A: Operator, columns: int) -> jax.Array:
    """Return approximate right vectors (n, columns) from `eigh` of the smaller Gram matrix.

    Exact to eps (s_1 / s_i)^2: a start, that Rayleigh-Ritz corrects and certifies.
    """
    m, n = A.shape
    there, back = (A.matmat, A.rmatmat) if m >= n else (A.rmatmat, A.matmat)
    image = there(jnp.eye(min(m, n), dtype=A.dtype))
    largest = jnp.max(jnp.abs(image))
    size = jnp.where(largest > 0, largest, 1).astype(A.dtype)
    G = back(image / size) / size
    W, _ = lax.linalg.eigh((G + adjoint(G)) / 2, symmetrize_input=False)
    W = W[:, ::-1][:, :columns]  # ascending eigenvalues
    return W if m >= n else A.rmatmat(W) / size


def init(A: Operator, columns: int, seed: int | jax.Array, start: jax.Array | None = None) -> State:
    """Return the state before the first step, from right vectors (n, <= columns) if given."""
    m, n = A.shape
    block = start_block(seed, n, columns, A.dtype)
    if start is not None:
        block = block.at[:, : start.shape[1]].set(start.astype(A.dtype))
    real = jnp.finfo(A.dtype).dtype
    state = State(
        U=jnp.zeros((m, columns), A.dtype),
        S=jnp.zeros((columns,), real),
        V=jnp.zeros((n, columns), A.dtype),
        next=orthonormalize(block),
        residuals=jnp.full((columns,), jnp.inf, real),
        iteration=jnp.zeros((), jnp.int32),
    )
    return alike(state, A)


def step(A: Operator, state: State) -> State:
    """Return the state after two products with A."""
    m, n = A.shape
    l = state.next.shape[1]
    AV = A.matmat(state.next)
    largest = jnp.max(jnp.abs(AV))
    scale = jnp.where(largest > 0, largest, 1)
    size = scale.astype(A.dtype)
    Q = orthonormalize(AV / size, fill=noise(m, l, A.dtype))
    X, S, Yh = inner(adjoint_product(Q, AV / size))
    U, V = product(Q, X), product(state.next, adjoint(Yh))
    Z = A.rmatmat(U) / size
    residuals = jnp.linalg.norm(Z - V * S[None, :].astype(V.dtype), axis=0)
    following = orthonormalize(Z, fill=noise(n, l, A.dtype))
    return State(U, scale * S, V, following, scale * residuals, state.iteration + 1)


def result(state: State, k: int) -> SVDResult:
    """Return the k leading triplets of the last step."""
    return SVDResult(state.U[:, :k], state.S[:k], adjoint(state.V[:, :k]))
