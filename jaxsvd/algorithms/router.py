"""The one table of which algorithm serves which case, and the one door to it.

The door is a `custom_vmap` function: under `vmap` a function is traced with the shape of one
matrix, so a choice by shape alone would never see the batch. Here `vmap(f)(A)`, nested `vmap` and
a leading axis all arrive as one array (..., m, n) and get the same algorithm and the same bits.
The platform is chosen when the program is lowered (`lax.platform_dependent`), not when Python runs.

A `vmap` that becomes a leading axis also keeps what is a choice within an algorithm from turning
into a selection, whose sides run at the same time: on CPU two batches of SVDs at once wait for each
other's threads for ever (jaxlib 0.10.2, as many cores as batches).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from .._types import SVDResult
from . import dense, registers
from .dense import GPU_KERNEL, Request
from .gram import gram
from .jacobi import jacobi, jacobi_values
from .phase import fix_phases
from .polar import polar
from .tall import tall

METHODS = ("auto", "lapack", "jacobi", "gram", "polar")

# Stands in profiles, and tells the decompositions of this library from others in a jaxpr.
SCOPE = "jaxsvd"

CPU, GPU, TPU = PLATFORMS = ("cpu", "gpu", "tpu")

Shape = tuple[int, ...]


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: of the algorithm; a user may ask for it by ``method``.
        platforms: where it is chosen by itself.
        applies: (shape, request) -> whether it is chosen by itself.
        run: (a, request) -> triplets.
        values: a -> singular values alone, or None: those of the triplets.
        why: one line, with the measurement.
        signs: whether ``run`` fixes signs itself where the request says so.
    """

    name: str
    platforms: tuple[str, ...]
    applies: Callable[[Shape, Request], bool]
    run: Callable[[jax.Array, Request], SVDResult]
    values: Callable[[jax.Array], jax.Array] | None
    why: str
    signs: bool = False


def _batch(shape: Shape) -> int:
    return math.prod(shape[:-2])


# `python -m benchmarks.router` measures the crossings; benchmarks/results holds what it found.
# Size up to which Jacobi wins, and the number of matrices from which it does. The size of thin
# factors is the shorter side, or half of the longer one: of LAPACK's time it takes 0.4 at 16 x 4,
# and at 16 x 16 0.5 to 0.9 in real single precision, as much as LAPACK or more in all others, which
# is why those stay with LAPACK beyond a size.
JACOBI_FROM = {2: 48, 3: 24, 4: 16, 6: 16, 8: 16, 10: 24, 12: 16, 16: 32}
JACOBI_OF_ANY_DTYPE = 12


def _small_batch(shape: Shape, request: Request) -> bool:
    n, m = sorted(shape[-2:])
    size = m if request.full_matrices else max(n, (m + 1) // 2)
    least = next((least for most, least in JACOBI_FROM.items() if size <= most and m <= 16), None)
    single = request.dtype == np.float32
    return least is not None and _batch(shape) >= least and (size <= JACOBI_OF_ANY_DTYPE or single)


# Matrices from which cuSOLVER's kernel for a batch is left: 64 of 16 x 16 take it 0.4 ms and `eigh`
# with Jacobi 0.7, 20,000 of them 12.7 and 3.6 (H200).
GPU_FROM = 512


def _in_registers(shape: Shape, request: Request) -> bool:
    m, n = shape[-2:]
    thin = m == n or not request.full_matrices
    return max(m, n) <= registers.MOST and thin and _real(request) and _batch(shape) >= 16


def _small_on_gpu(shape: Shape, request: Request) -> bool:
    return max(shape[-2:]) <= 8 and _batch(shape) >= GPU_FROM


def _medium_on_gpu(shape: Shape, request: Request) -> bool:
    size = max(shape[-2:])
    return size <= 128 and _batch(shape) >= (GPU_FROM if size <= GPU_KERNEL else 4)


def _large_on_gpu(shape: Shape, request: Request) -> bool:
    return min(shape[-2:]) > GPU_KERNEL


def _real(request: Request) -> bool:
    return not np.issubdtype(request.dtype, np.complexfloating)


def _tall(shape: Shape, request: Request) -> bool:
    m, n = sorted(shape[-2:], reverse=True)
    return not request.full_matrices and m >= 4 * n and m * n >= 1 << 16


def _narrow(shape: Shape, request: Request) -> bool:
    m, n = sorted(shape[-2:], reverse=True)
    size = request.dtype.itemsize
    alone = _batch(shape) == 1 and not request.full_matrices
    # From 256 columns on LAPACK's Cholesky calls up the other core, whose thread goes on spinning
    # through the products: 2048 x 248 takes 0.6 of LAPACK's time, and 2048 x 256 1.4 of it.
    few = 12 <= n < 256 and n * size <= 1 << 10
    long = m >= (16 if n <= 64 else 8) * n and m * n >= 1 << 14
    in_cache = m * n * size <= 1 << 22
    return alone and _real(request) and few and long and in_cache


def _thin_or_full(run: Callable[[jax.Array, bool], SVDResult]):
    return lambda a, request: run(a, request.full_matrices)


def _tall_run(a: jax.Array, request: Request) -> SVDResult:
    del request  # thin factors alone
    return tall(a, lambda R: solve(R, Request()))


# The first row that applies serves the case.
DENSE = (
    Row(
        "empty",
        PLATFORMS,
        lambda shape, request: min(shape[-2:]) == 0,
        _thin_or_full(dense.empty),
        None,
        "no rows or no columns: nothing to compute",
    ),
    Row(
        "hermitian",
        PLATFORMS,
        lambda shape, request: request.hermitian,
        _thin_or_full(dense.hermitian),
        None,
        "eigh of a Hermitian matrix, about half the time of a general SVD",
    ),
    Row(
        "quiet",
        (CPU,),
        lambda shape, request: request.quiet,
        lambda a, request: dense.checked(a, dense.quiet(a)),
        None,
        "LAPACK by the QR algorithm up to 64 x 64: no threads that spin on through the products",
    ),
    Row(
        "jacobi",
        (CPU,),
        _small_batch,
        lambda a, request: jacobi(a, request.full_matrices, signs=request.signs),
        jacobi_values,
        "a batch of small matrices, all rotated at once: LAPACK takes them one by one",
        signs=True,
    ),
    Row(
        "registers",
        (GPU,),
        _in_registers,
        lambda a, request: registers.in_registers(a, request.signs),
        None,
        "a million of 3 x 3 in 0.2 ms, cuSOLVER 180: one kernel, a matrix to a thread",
        signs=True,
    ),
    Row(
        "jacobi",
        (GPU,),
        _small_on_gpu,
        lambda a, request: jacobi(a, request.full_matrices, chunked=False, signs=request.signs),
        functools.partial(jacobi_values, chunked=False),
        "100,000 of 8 x 8 in 4 ms, cuSOLVER 36, at a tenth of its error",
        signs=True,
    ),
    Row(
        "tall",
        (GPU,),
        _tall,
        _tall_run,
        None,
        "CholeskyQR first, all of it products of long columns",
    ),
    # Outside of this LAPACK is as fast, and 1.3 to 4 times faster where A is complex, or large and
    # ill-conditioned, or has 256 columns in double precision. Sums over 400,000 rows of 3 columns,
    # which XLA writes out, lose three digits in single precision.
    Row(
        "tall",
        (CPU,),
        _narrow,
        _tall_run,
        dense.lapack_values,
        "the same: 0.3 to 0.9 of LAPACK's time, 0.4 to 1.1 at condition 1e7 (12 to 255 columns)",
    ),
    Row(
        "gram",
        (GPU,),
        _medium_on_gpu,
        _thin_or_full(gram),
        None,
        "batched eigh and Jacobi: 1024 of 48 x 48 in 6 ms, cuSOLVER 980, one after the other",
    ),
    Row(
        "polar",
        (GPU,),
        _large_on_gpu,
        _thin_or_full(polar),
        None,
        "QDWH and eigh: 4096 x 4096 in 0.22 s, cuSOLVER 1.26, at a third of its error",
    ),
    Row(
        "lapack",
        PLATFORMS,
        lambda shape, request: True,
        lambda a, request: dense.lapack(a, request.full_matrices, request.signs),
        dense.lapack_values,
        "the SVD of the platform: LAPACK on CPU, cuSOLVER on GPU, XLA's own on TPU",
        signs=True,
    ),
)


def route(shape: Shape, request: Request, platform: str) -> Row:
    """Return the row that serves matrices of ``shape`` (batch axes included) on a platform."""
    if request.method == "auto":
        return next(r for r in DENSE if platform in r.platforms and r.applies(shape, request))
    trivial = (row for row in DENSE[:2] if row.applies(shape, request))
    named = [row for row in DENSE if row.name == request.method]
    here = (row for row in named if platform in row.platforms)
    return next(trivial, None) or next(here, named[0])


def without_gathering(shape: tuple[int, ...]) -> Request:
    """Return the request for the thin SVD of a matrix that may be spread over many devices.

    LAPACK wants all of a matrix in one place, and whether an axis is sharded cannot be told inside
    a program: so a long matrix always goes by products, on every platform. One of up to 16 columns
    is no larger than a sketch, which may be gathered; sums of its 400,000 rows written out by XLA
    in single precision lose three digits, those of more columns none.
    """
    apart = _tall(shape, Request()) and min(shape[-2:]) > 16
    return Request(method="tall" if apart else "auto")


def _on_platform(a: jax.Array, request: Request, run: Callable[[Row], Callable]) -> Any:
    """Apply to a what ``run`` makes of the row of the platform the program is lowered for."""
    request = request._replace(dtype=a.dtype)
    rows = {platform: route(a.shape, request, platform) for platform in PLATFORMS}
    if len({row.name for row in rows.values()}) == 1:
        return run(rows[CPU])(a)
    cpu, gpu, tpu = (run(rows[platform]) for platform in PLATFORMS)
    return lax.platform_dependent(a, cpu=cpu, cuda=gpu, rocm=gpu, default=tpu)


@functools.cache
def _door(compute: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    door = custom_vmap(compute)

    @door.def_vmap
    def _(axis_size, in_batched, a):  # a: (axis_size, ..., m, n)
        del axis_size, in_batched
        result = door(a)
        return result, jax.tree.map(lambda _: True, result)

    return door


@functools.cache
def _triplets(request: Request) -> Callable[[jax.Array], SVDResult]:
    @jax.named_scope(SCOPE)
    def triplets(a):
        def run(row):
            if request.signs and not row.signs:
                return lambda a: fix_phases(row.run(a, request))
            return lambda a: row.run(a, request)

        return _on_platform(a, request, run)

    return _door(triplets)


def solve(a: jax.Array, request: Request) -> SVDResult:
    """Return the numbers of the SVD of (..., m, n), by the algorithm the table names."""
    return _triplets(request)(a)


@jax.named_scope(SCOPE)
def _values(a: jax.Array) -> jax.Array:
    return _on_platform(a, Request(), lambda row: row.values or (lambda a: row.run(a, Request()).S))


def solve_values(a: jax.Array) -> jax.Array:
    """Return the singular values of (..., m, n), without vectors where that is cheaper."""
    return _door(_values)(a)


def inner(a: jax.Array) -> SVDResult:
    """Return the SVD of a small matrix, or of a stack, between large products."""
    return solve(a, Request(quiet=True))
