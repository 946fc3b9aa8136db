"""Matrices on Explicit meshes: the compiler places what is between, the results stand as A does.

On an Auto mesh XLA carries the sharding of A through every product, loop and solve: tall blocks are
sharded like its rows (or columns), small ones replicated, and products of blocks end in a sum over
the devices. On an Explicit mesh (the default of `jax.make_mesh` since JAX 0.9) each operation would
have to be told. So the axes of the mesh are made Auto inside: both kinds run the same program, and
only the results are given their place. Axes that `jax.shard_map` has made Manual stay as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .._types import CoreSVD, SVDResult
from ..operators.base import Operator
from ..operators.dense import Dense


class Place(NamedTuple):
    """How a matrix (..., m, n) lies on the Explicit axes of a mesh.

    Attributes:
        mesh: the mesh.
        batch: mesh axes of the leading axes, one entry each.
        rows: mesh axes of the rows.
        columns: mesh axes of the columns.
    """

    mesh: Any
    batch: tuple
    rows: Any
    columns: Any

    def of(self, *last: Any) -> Any:
        """Return the sharding of a result whose axes after the leading ones are given."""
        return NamedSharding(self.mesh, PartitionSpec(*self.batch, *last))

    @property
    def triplets(self) -> SVDResult:
        """Shardings of U, S, Vh."""
        return SVDResult(self.of(self.rows, None), self.of(), self.of(None, self.columns))

    @property
    def core(self) -> CoreSVD:
        """Shardings of U, C, Vh."""
        return CoreSVD(self.of(self.rows, None), self.of(), self.of(None, self.columns))

    @property
    def small(self) -> Any:
        """Sharding of numbers that belong to a matrix as a whole."""
        return self.of()

    @property
    def matrix(self) -> Any:
        """Sharding of a matrix of the same shape."""
        return self.of(self.rows, self.columns)


def _place(arguments: Any, a: Any) -> Place | None:
    """Return how ``a`` lies, or None if no argument has an Explicit axis."""
    for x in jax.tree.leaves(arguments):
        sharding = getattr(jax.typeof(x), "sharding", None)
        if sharding is not None and AxisType.Explicit in sharding.mesh.axis_types:
            break
    else:
        return None
    a = a.a if isinstance(a, Dense) else a
    if isinstance(a, Operator):  # its arrays say nothing about the rows of its products
        return Place(sharding.mesh, (), None, None)
    spec = jax.typeof(a).sharding.spec
    *batch, rows, columns = (*spec, *[None] * (a.ndim - len(spec)))
    return Place(sharding.mesh, tuple(batch), rows, columns)


def on_any_mesh(
    function: Callable[..., Any], out: Callable[[Place], Any], a: Any, *others: Any
) -> Any:
    """Return function(a, *others), with every Explicit axis of a mesh left to the compiler.

    Args:
        function: of a matrix or operator and further pytrees of arrays, all that it uses.
        out: the shardings of its results, a prefix of their pytree, from the place of ``a``.
        a: array (..., m, n) or operator.
        others: further arguments.
    """
    place = _place((a, others), a)
    if place is None:
        return function(a, *others)
    kinds = zip(place.mesh.axis_names, place.mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out(place))(a, *others)
