"""Matrices of up to 4 x 4 by the million on a GPU: each stays in the registers of one thread.

One-sided Jacobi as in `algorithms.jacobi`, in one kernel: a matrix is read once and its factors are
written once, where XLA's own loops pass all of them through memory in every rotation. A million of
3 x 3 on an H200: 0.2 ms, as long as XLA takes to copy them in three, against 1.5 ms of rotations in
XLA and 180 ms of cuSOLVER.

The kernel is written in Pallas, for Triton. Where that cannot be (another platform, a program of
several devices whose partitioner knows nothing of kernels, one lowered for a GPU on a machine that
has none, or a version of JAX whose Pallas has left Triton behind), XLA's loops do the same.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from .. import _tolerances
from .._types import SVDResult
from .jacobi import MAX_SWEEPS, complete, jacobi, least_norm, rotation
from .phase import leading_phases
from .products import power_of_two

# Beyond, Triton takes too long: 3 x 3 compile in 0.7 s, 4 x 4 in 3 s, 6 x 6 in 41 s.
MOST = 4

# Matrices of one program instance and its warps: (64, 2) takes 0.14, 0.25 and 0.53 ms for a million
# of 2 x 2, 3 x 3 and 4 x 4; (32, 1) 0.14, 0.21, 0.78; (128, 4) 0.18, 0.35, 0.59 (H200, float32).
BLOCK, WARPS = 64, 2


def _pallas() -> tuple[Any, Any]:
    """Return Pallas and its part for Triton, which not every platform has."""
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    return pallas, triton


# One entry of every matrix of a block: arrays (BLOCK,). Columns are sequences of them.
Lanes = jax.Array
Column = list[Lanes]


def _sum(terms: Sequence[Lanes]) -> Lanes:
    return functools.reduce(lambda x, y: x + y, terms)


def _largest(terms: Sequence[Lanes]) -> Lanes:
    return functools.reduce(jnp.maximum, terms)


def _dot(x: Column, y: Column) -> Lanes:
    return _sum([a * b for a, b in zip(x, y, strict=True)])


def _sweep(columns: list[Column], rows: int) -> tuple[list[Column], Lanes]:
    """Rotate every pair of columns once; return what is left over, as in `jacobi`."""
    columns, n = list(columns), len(columns)
    square = tangent = jnp.zeros_like(columns[0][0])
    for p in range(n - 1):
        for q in range(p + 1, n):
            x, y = columns[p], columns[q]
            a, b, c = (_dot(u[:rows], v[:rows]) for u, v in ((x, x), (y, y), (x, y)))
            cos, sin, between, turned = rotation(a, b, c, rows, refine=True)
            columns[p] = [cos * u - sin * v for u, v in zip(x, y, strict=True)]
            columns[q] = [sin * u + cos * v for u, v in zip(x, y, strict=True)]
            square, tangent = jnp.maximum(square, between), jnp.maximum(tangent, turned)
    cosine = jnp.sqrt(square)
    return columns, jnp.max(n * cosine * jnp.maximum(tangent, cosine))


def _sorted(columns: list[Column], S: Column) -> tuple[list[Column], Column]:
    """Sort by S, largest first: odd-even transposition."""
    columns, S, n = list(columns), list(S), len(S)
    for turn in range(n):
        for p in range(turn % 2, n - 1, 2):
            keep = S[p] >= S[p + 1]
            x, y = columns[p], columns[p + 1]
            columns[p] = [jnp.where(keep, u, v) for u, v in zip(x, y, strict=True)]
            columns[p + 1] = [jnp.where(keep, v, u) for u, v in zip(x, y, strict=True)]
            S[p], S[p + 1] = jnp.where(keep, S[p], S[p + 1]), jnp.where(keep, S[p + 1], S[p])
    return columns, S


def _sign(column: Column) -> Lanes:
    """Return the sign of the leading entry, as in `algorithms.phase`."""
    sizes = [jnp.abs(x) for x in column]
    enough = (1 - _tolerances.phase_tol(column[0].dtype)) * _largest(sizes)
    sign = jnp.ones_like(column[0])
    for x, size in zip(reversed(column), reversed(sizes), strict=True):
        sign = jnp.where(size >= enough, jnp.where(x < 0, -1.0, 1.0).astype(x.dtype), sign)
    return sign


def _triplets(columns: list[Column], signs: str | None):
    """Return the left vectors, S and the right vectors of matrices given by their columns.

    Where S is too small to tell a direction it is zero, and so is the left vector.

    Args:
        columns: n of them with m >= n entries.
        signs: "left" or "right", whose leading entries become positive; None leaves them.
    """
    n, m, dtype = len(columns), len(columns[0]), columns[0][0].dtype
    every = [x for column in columns for x in column]
    largest = power_of_two(_largest([jnp.abs(x) for x in every]))
    nothing = _sum([0 * x for x in every])  # NaN where a matrix is not finite: so are all factors
    scale, ones = largest + nothing, jnp.ones_like(largest)
    identity = [[ones * int(i == j) for i in range(n)] for j in range(n)]
    both = [[x / scale for x in column] + e for column, e in zip(columns, identity, strict=True)]

    def unfinished(carry):
        _, left_over, number = carry
        return (left_over > _tolerances.eps(dtype)) & (number < MAX_SWEEPS)

    def sweep(carry):
        columns, left_over = _sweep(carry[0], m)
        return columns, left_over, carry[2] + 1

    start = both, jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32)
    both = lax.while_loop(unfinished, sweep, start)[0]
    both, S = _sorted(both, [jnp.sqrt(_dot(column[:m], column[:m])) for column in both])
    given = [s > least_norm(dtype) for s in S]
    inverses = [jnp.where(g, 1 / jnp.where(g, s, 1), 0) for g, s in zip(given, S, strict=True)]
    left = [[x * i for x in column[:m]] for column, i in zip(both, inverses, strict=True)]
    right = [column[m:] for column in both]
    for j in range(n):
        leading = {"left": left[j], "right": right[j], None: None}[signs]
        sign = nothing + (1 if leading is None else _sign(leading))
        left[j], right[j] = ([sign * x for x in column] for column in (left[j], right[j]))
    S = [jnp.where(g, s, nothing) * scale for g, s in zip(given, S, strict=True)]
    return left, S, right


def _kernel(shape: tuple[int, int, int], signs: bool, a_ref, U_ref, S_ref, Vh_ref):
    pallas, triton = _pallas()
    count, m, n = shape
    k = min(m, n)
    inside = pallas.program_id(0) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32) < count

    def entry(i, j):  # of the tall one of A and A^T
        at = i * n + j if m >= n else j * n + i
        return triton.load(a_ref.at[:, np.int32(at)], mask=inside, other=0.0)

    columns = [[entry(i, j) for i in range(max(m, n))] for j in range(k)]
    leading = None if not signs else "left" if m >= n else "right"
    left, S, right = _triplets(columns, leading)
    U, V = (left, right) if m >= n else (right, left)
    for j in range(k):
        triton.store(S_ref.at[:, np.int32(j)], S[j], mask=inside)
        for i in range(m):
            triton.store(U_ref.at[:, np.int32(i * k + j)], U[j][i], mask=inside)
        for i in range(n):
            triton.store(Vh_ref.at[:, np.int32(j * n + i)], V[j][i], mask=inside)


def _called(a: jax.Array, signs: bool, interpret: bool) -> list[jax.Array]:
    pallas, triton = _pallas()
    count, m, n = a.shape
    k = min(m, n)

    def block(size):
        return pallas.BlockSpec((BLOCK, size), lambda i: (i, 0))

    sizes = (m * k, k, k * n)
    U, S, Vh = pallas.pallas_call(
        functools.partial(_kernel, (count, m, n), signs),
        out_shape=[jax.ShapeDtypeStruct((count, size), a.dtype) for size in sizes],
        grid=(pallas.cdiv(count, BLOCK),),
        in_specs=[block(m * n)],
        out_specs=[block(size) for size in sizes],
        compiler_params=triton.CompilerParams(num_warps=WARPS),
        interpret=interpret,
    )(a.reshape(count, m * n))
    return [U.reshape(count, m, k), S, Vh.reshape(count, k, n)]


def by_kernel(a: jax.Array, signs: bool, interpret: bool = False) -> list[jax.Array]:
    """Return U, S, Vh of (count, m, n) by the kernel, which may be interpreted to be tested."""
    m, n = a.shape[-2:]
    U, S, Vh = _called(a, signs, interpret)

    def fill():  # the batch is the last axis there
        left = (U if m >= n else Vh.mT).transpose(2, 1, 0)
        found = complete(left, ~(S.T == 0))
        if signs and m >= n:
            found = found * leading_phases(found, 1)[:, None]
        found = found.transpose(2, 1, 0)
        return (found, Vh) if m >= n else (U, found.mT)

    # Not in the kernel, whose compilation it would make three times as long.
    U, Vh = lax.cond(jnp.any(S == 0), fill, lambda: (U, Vh))
    return [U, S, Vh]


def _by_loops(a: jax.Array, *, signs: bool) -> list[jax.Array]:
    return list(jacobi(a, False, chunked=False, signs=signs))


# Which of the two it is can only be told when a program is lowered, by a primitive's rule.
registers_p = Primitive("svd_in_registers")
registers_p.multiple_results = True


@registers_p.def_impl
@functools.partial(jax.jit, static_argnames="signs")
def _evaluate(a, *, signs):
    return registers_p.bind(a, signs=signs)


@registers_p.def_abstract_eval
def _shapes(a, *, signs):
    return jax.make_jaxpr(functools.partial(_by_loops, signs=signs))(a).out_avals


_lower_loops = mlir.lower_fun(_by_loops, multiple_results=True)


def _lower_kernel(ctx: Any, a: Any, *, signs: bool) -> Any:
    axes = ctx.module_context.axis_context
    mesh = getattr(axes, "mesh", None)
    devices = getattr(axes, "num_devices", None) if mesh is None else mesh.size
    local = mesh is not None and frozenset(mesh.axis_names) == axes.manual_axes  # in a shard_map
    if devices == 1 or local:
        try:
            with warnings.catch_warnings():  # JAX 0.12: Pallas will leave Triton to others one day
                warnings.simplefilter("ignore", DeprecationWarning)
                return mlir.lower_fun(by_kernel, multiple_results=True)(ctx, a, signs=signs)
        except (ImportError, RuntimeError, ValueError, NotImplementedError):
            pass  # from JAX 0.11 on where there is no GPU to write the kernel for
    return _lower_loops(ctx, a, signs=signs)


mlir.register_lowering(registers_p, _lower_loops)
mlir.register_lowering(registers_p, _lower_kernel, platform="cuda")


def in_registers(a: jax.Array, signs: bool) -> SVDResult:
    """Return the thin SVD of real matrices (..., m, n) of up to 4 x 4.

    Args:
        a: the matrices.
        signs: fix the signs of the vectors, as in `algorithms.phase`.
    """
    *batch, m, n = a.shape
    results = registers_p.bind(a.reshape(-1, m, n), signs=signs)
    return SVDResult(*(x.reshape(*batch, *x.shape[1:]) for x in results))
