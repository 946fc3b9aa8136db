"""Data that arrives: the leading right vectors from a single pass, and an SVD kept up to date.

`init`, `update`, `finalize` sketch rows that are seen once, in any order, on as many workers as
there are: sketches `merge`. `svd_update` appends rows to an SVD.

Example:
    >>> import jax, jax.numpy as jnp, jaxsvd
    >>> state = jaxsvd.streaming.init(30, 2)
    >>> for i in range(10):  # batches, each seen once
    ...     coordinates = jax.random.normal(jax.random.key(i), (50, 2))
    ...     state = jaxsvd.streaming.update(state, coordinates @ jnp.eye(2, 30))
    >>> result, error = jaxsvd.streaming.finalize(state)
    >>> result.Vh.shape, bool(error < 1e-6)
    ((2, 30), True)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import DTypeLike

from . import _checks
from ._types import SVDResult
from .algorithms import streaming
from .algorithms.phase import column_phases
from .algorithms.products import adjoint, product
from .operators.base import operator, static
from .primitives.svd import svd


@operator
class StreamState:
    """What is kept of the rows seen; a pytree to carry, save, restore and merge.

    Attributes:
        sketch: sums over the rows.
        k: triplets wanted, static.
        seed: of the test matrix, static; states merge where it is the same.
    """

    sketch: streaming.Sketch
    k: int = static()
    seed: int = static()


def init(
    n: int,
    k: int,
    *,
    columns: int | None = None,
    key: int = 0,
    dtype: DTypeLike | None = None,
) -> StreamState:
    """Return the state before the first row.

    Memory: 3 n ``columns`` numbers, whatever the number of rows.

    Args:
        n: static; length of a row.
        k: static number of triplets, 1 <= k <= n.
        columns: static; width l of the sketch, k + 2 at least; default 2 k + 1, for which the bound
            of `finalize` is twice the best possible.
        key: static int that seeds the test matrix; the same for all states that will merge.
        dtype: of the sketch, floating or complex; default float as JAX has it.

    Returns:
        StreamState.

    Raises:
        TypeError: a static argument is not static.
        ValueError: an argument out of range.
    """
    name = "streaming.init"
    n = _checks.static_int(name, "n", n, 1, 2**31 - 1)
    k = _checks.static_int(name, "k", k, 1, n)
    wide = 2 * k + 1 if columns is None else columns
    wide = _checks.static_int(name, "columns", wide, k + 1 if columns is None else k + 2, 2**31)
    seed = _checks.static_int(name, "key", key, 0, 2**31 - 1)
    found = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(found, jnp.inexact) or found.itemsize < 4:
        raise TypeError(
            f"{name}: `dtype` must be a float or complex of 32 bits or more, got {found}"
        )
    found = jax.dtypes.canonicalize_dtype(found)
    return StreamState(streaming.init(jax.random.key(seed), n, min(wide, n), found), k, seed)


def _state(name: str, argument: str, state: Any) -> StreamState:
    if not isinstance(state, StreamState):
        raise TypeError(
            f"{name}: `{argument}` must come from streaming.init, got {_checks.describe(state)}"
        )
    return state


def _batch(name: str, rows: Any, n: int, dtype: Any) -> jax.Array:
    """Return rows (b, n) in the dtype of what they are added to, or raise."""
    rows = _checks.array(name, rows, "rows")
    if rows.ndim != 2 or rows.shape[1] != n:
        raise ValueError(f"{name}: `rows` must have shape (b, {n}), got {rows.shape}")
    if jnp.iscomplexobj(rows) and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"{name}: `rows` must be real, as dtype {dtype} is, got {rows.dtype}")
    return rows.astype(dtype)


@jax.jit
def _update(state: StreamState, rows: jax.Array) -> StreamState:
    return StreamState(streaming.update(state.sketch, rows), state.k, state.seed)


def update(state: StreamState, rows: Any) -> StreamState:
    """Return the state of the rows seen and of those given; the given state stays as it is.

    Cost: two products of the rows with ``columns`` vectors. Each new height of a batch compiles
    once.

    Args:
        state: from `init`, `update` or `merge`.
        rows: array (b, n); integers and half precision are converted.

    Returns:
        StreamState.

    Raises:
        TypeError: the rows are no array, or complex for a real sketch.
        ValueError: rows of another length.
    """
    name = "streaming.update"
    W = _state(name, "state", state).sketch.W
    return _update(state, _batch(name, rows, W.shape[0], W.dtype))


def merge(left: StreamState, right: StreamState) -> StreamState:
    """Return the state of the rows of both: to rounding that of a single worker who saw them all.

    Args:
        left: state of some rows.
        right: state of others, of the same n, k, columns, key and dtype.

    Returns:
        StreamState.

    Raises:
        ValueError: the two were not made alike.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> empty = jaxsvd.streaming.init(4, 1)
        >>> both = [jaxsvd.streaming.update(empty, x * jnp.eye(3, 4)) for x in (3.0, 4.0)]
        >>> jaxsvd.streaming.finalize(jaxsvd.streaming.merge(*both))[0].S.round(3)
        Array([5.], dtype=float64)
    """
    name = "streaming.merge"
    made = [
        (
            state.sketch.W.shape[0],
            state.k,
            state.sketch.W.shape[1],
            state.seed,
            state.sketch.W.dtype,
        )
        for state in (_state(name, "left", left), _state(name, "right", right))
    ]
    if made[0] != made[1]:
        wanted, came = (f"({', '.join(map(str, x))})" for x in made)
        raise ValueError(
            f"{name}: `right` must be made with the (n, k, columns, key, dtype) of `left`, "
            f"{wanted}, got {came}"
        )
    return StreamState(streaming.merge(left.sketch, right.sketch), left.k, left.seed)


@jax.jit
def _finalize(state: StreamState) -> tuple[jax.Array, jax.Array, jax.Array]:
    S, V, error = streaming.finish(state.sketch, state.k)
    return S, adjoint(V * jnp.conj(column_phases(V))[None, :]), error


def finalize(state: StreamState) -> tuple[SVDResult, jax.Array]:
    """Return the leading right vectors and singular values of all rows seen, and their error.

        |A - A V V^H|_F <= error |A|_F,   E error^2 <= (1 + k / (l - k - 1)) |A - A_k|_F^2 / |A|_F^2

    with l ``columns`` (infinitely many for l = n: the result is exact). The first is certain, down
    to sqrt(eps); the second in the mean over keys. No S exceeds its exact value, but for rounding,
    and values below sqrt(eps) s_1 are lost in it. The state may go on to take in rows.

    Args:
        state: of at least one row.

    Returns:
        (SVDResult, error): U None, S (k,), Vh (k, n), the largest entry of each row of Vh real
        and positive; error (). A second pass gives U = A V / S.

    Raises:
        ValueError: no row has been seen.
    """
    name = "streaming.finalize"
    rows = _state(name, "state", state).sketch.rows
    if not isinstance(rows, Tracer) and int(rows) == 0:
        raise ValueError(f"{name}: `state` must have seen at least one row, got an empty stream")
    S, Vh, error = _finalize(state)
    return SVDResult(None, S, Vh), error  # type: ignore[arg-type]


@jax.jit
def _append(U, S, Vh, rows):
    left, S, Vh = svd(jnp.concatenate([S[:, None].astype(Vh.dtype) * Vh, rows]), False)
    if U is not None:
        r = U.shape[1]
        U = jnp.concatenate([product(U, left[:r]), left[r:]])
    return U, S, Vh


def svd_update(result: SVDResult, rows: Any, k: int | None = None) -> SVDResult:
    """Return the k leading triplets of A with rows appended, from those of A.

        [U S Vh; rows] = diag(U, I) [S Vh; rows],   and the SVD of the small matrix on the right

    It is the exact SVD of that matrix, cut at k: exact for A if the result holds all its triplets,
    and otherwise the loss is what was cut, here and before. Differentiable.

    Cost: the SVD of an (r + b, n) matrix and a product of m r k for the r triplets of ``result``.

    Args:
        result: SVDResult of A, U (m, r), S (r,), Vh (r, n); U may be None, and then stays None: of
            an endless stream nobody keeps the left vectors.
        rows: array (b, n).
        k: static; triplets to return, at most min(r + b, n); default r.

    Returns:
        SVDResult, U (m + b, k), S (k,), Vh (k, n).

    Raises:
        TypeError: ``result`` is no SVDResult; complex rows for a real one.
        ValueError: shapes that do not fit, no rows, k out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> A = jnp.arange(12.0).reshape(4, 3) % 5
        >>> result = jaxsvd.svd(A[:2], full_matrices=False)
        >>> result = jaxsvd.svd_update(result, A[2:], 3)
        >>> bool(jnp.allclose(result.U @ jnp.diag(result.S) @ result.Vh, A))
        True

    References:
        Brand (2006), Linear Algebra Appl. 415, equation 4; Levy and Lindenbaum (2000), IEEE Trans.
        Image Process. 9, section III.
    """
    name = "svd_update"
    if not isinstance(result, tuple) or len(result) != 3:
        raise TypeError(f"{name}: `result` must be an SVDResult, got {_checks.describe(result)}")
    U, S, Vh = result
    Vh = _checks.array(name, Vh, "result.Vh")
    r = S.shape[0]
    fits = Vh.ndim == 2 and Vh.shape[0] == r and (U is None or (U.ndim == 2 and U.shape[1] == r))
    if not fits:
        shapes = [None if x is None else x.shape for x in result]
        raise ValueError(f"{name}: `result` must have shapes (m, r), (r,), (r, n), got {shapes}")
    rows = _batch(name, rows, Vh.shape[1], Vh.dtype)
    b, n = rows.shape
    if b == 0:
        raise ValueError(f"{name}: `rows` must hold at least one row, got shape {rows.shape}")
    most = min(r + b, n)
    k = min(r, most) if k is None else _checks.static_int(name, "k", k, 1, most)
    U, S, Vh = _append(U, S, Vh, rows)
    return SVDResult(None if U is None else U[:, :k], S[:k], Vh[:k])  # type: ignore[arg-type]
