"""The one table of which algorithm serves which case, and the one door to it.

The door is a `custom_vmap` function: under `vmap` a function is traced with the shape of one
matrix, so a choice by shape alone would never see the batch. Here `vmap(f)(A)`, nested `vmap` and
a leading axis all arrive as one array (..., m, n) and get the same algorithm and the same bits.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.custom_batching import custom_vmap

from .._types import SVDResult
from . import dense
from .dense import Request

METHODS = ("auto", "lapack")

# Stands in profiles, and tells the decompositions of this library from others in a jaxpr.
SCOPE = "jaxsvd"


class Row(NamedTuple):
    """One row of the table: a name, when it applies, what runs, and why."""

    name: str
    applies: Callable[[tuple[int, ...], Request], bool]
    run: Callable[[jax.Array, bool], SVDResult]
    why: str


# The first row that applies serves the case.
DENSE = (
    Row(
        "empty",
        lambda shape, request: min(shape[-2:]) == 0,
        dense.empty,
        "no rows or no columns: nothing to compute",
    ),
    Row(
        "hermitian",
        lambda shape, request: request.hermitian,
        dense.hermitian,
        "eigh of a Hermitian matrix, about half the time of a general SVD",
    ),
    Row(
        "lapack",
        lambda shape, request: True,
        dense.lapack,
        "the SVD of the platform: LAPACK on CPU, cuSOLVER on GPU, XLA's own on TPU",
    ),
)


def route(shape: tuple[int, ...], request: Request) -> Row:
    """Return the row of the table that serves matrices of ``shape`` (batch axes included)."""
    return next(row for row in DENSE if row.applies(shape, request))


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
        return route(a.shape, request).run(a, request.full_matrices)

    return _door(triplets)


def solve(a: jax.Array, request: Request) -> SVDResult:
    """Return the numbers of the SVD of (..., m, n), by the algorithm the table names."""
    return _triplets(request)(a)


@jax.named_scope(SCOPE)
def _values(a: jax.Array) -> jax.Array:
    row = route(a.shape, Request())
    return dense.lapack_values(a) if row.name == "lapack" else row.run(a, False).S


def solve_values(a: jax.Array) -> jax.Array:
    """Return the singular values of (..., m, n), without vectors where that is cheaper."""
    return _door(_values)(a)
