"""A model run equation by equation, to see what its weights are multiplied with.

Where an operand of a product or convolution is a selected leaf, however rearranged, the other one
is its input.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from .. import _checks
from .._leaves import Place
from ..algorithms.products import PRECISION
from ..primitives.ruled import ruled_p
from . import views
from .views import View

# Equations that run another jaxpr on the same operands, by the name of its parameter.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    ruled_p.name: "body",
}

# Equations that leave every entry where it is.
ELEMENTWISE = ("convert_element_type", "copy", "reduce_precision", "sharding_constraint", "reshard")

Pair = tuple[Any, View | None]


class Watch:
    """Runs a jaxpr, and adds up X^H X for each leaf that it sees multiplied.

    Attributes:
        places: of the selected leaves.
        shapes: of them.
        sides: "rows" or "columns" by path, whichever is summed over; filled while tracing.
        dtypes: of the sums, by path; filled while tracing.
        sums: (..., s, s) by path, with the batch axes of the leaf; empty to fill the others only.
        problem: by path, why a product with it does not count.
    """

    def __init__(self, places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]]):
        self.places, self.shapes = places, shapes
        self.sides: dict[str, str] = {}
        self.dtypes: dict[str, Any] = {}
        self.sums: dict[str, jax.Array] = {}
        self.problem: dict[str, str] = {}

    def batch(self, path: str) -> list[int]:
        """Return the axes of a leaf that are neither rows nor columns."""
        place = self.places[path]
        axes = range(len(self.shapes[path]))
        return [axis for axis in axes if axis not in place.rows + place.columns]

    # ------------------------------------------------------------------------------- products

    def see(self, view: View, x: Any, contracted: Sequence, together: Sequence) -> None:
        """Count a product of a leaf with x, pairs of axes (view, x) being summed or in common."""
        path, place, shape = view.path, self.places[view.path], self.shapes[view.path]
        parts = [part for i, _ in contracted for part in view.axes[i]]
        side = next(
            (s for s in ("rows", "columns") if views.covers(parts, getattr(place, s), shape)), None
        )
        if side is None:
            self.problem[path] = "a product sums over other axes of it"
            return
        if self.sides.setdefault(path, side) != side:
            self.problem[path] = "one product sums over its rows and another over its columns"
        axes = getattr(place, side)
        in_common = [(view.axes[i], j) for i, j in together if view.axes[i]]
        if not all(
            views.is_whole(p, shape[p[0].axis]) and p[0].axis in self.batch(path)
            for p, _ in in_common
        ):
            self.problem[path] = "a product takes rows or columns of it one by one"
            return
        in_common.sort(key=lambda pair: pair[0][0].axis)
        last = [j for _, j in contracted]
        first = [j for _, j in in_common]
        free = [j for j in range(x.ndim) if j not in first + last]
        X = x.transpose(*first, *free, *last)
        lengths = [x.shape[j] for j in first]
        X = X.reshape(*lengths, math.prod(x.shape[j] for j in free), -1)
        self.add(view, _checks.working(views.in_order(X, parts, axes)), side, in_common)

    def add(self, view: View, X: jax.Array, side: str, in_common: Sequence) -> None:
        """Add X^H X of X (leaf's batch axes in common, N, s), which are inputs of the leaf."""
        path = view.path
        if path not in self.sums:
            self.dtypes[path] = jnp.promote_types(X.dtype, self.dtypes.get(path, X.dtype))
            return
        total = self.sums[path]
        C = jnp.einsum("...ni,...nj->...ij", jnp.conj(X), X, precision=PRECISION)
        C = jnp.conj(C) if side == "columns" else C
        held = [parts[0].axis for parts, _ in in_common]
        starts, lengths, kept = [], [], []
        for axis, length in zip(self.batch(path), total.shape[:-2], strict=True):
            starts.append(jnp.asarray(view.fixed.get(axis, 0), jnp.int32))
            lengths.append(1 if axis in view.fixed else length)
            kept.append(length if axis in held else 1)
        square = total.shape[-2:]
        starts, lengths = [*starts, *[jnp.zeros((), jnp.int32)] * 2], [*lengths, *square]
        C = jnp.broadcast_to(C.reshape(*kept, *square), lengths).astype(total.dtype)
        new = lax.dynamic_slice(total, starts, lengths) + C
        self.sums[path] = lax.dynamic_update_slice(total, new, starts)

    def product(self, equation: Any, operands: Sequence[Pair]) -> None:
        """See a dot_general."""
        (a, b), (a_batch, b_batch) = equation.params["dimension_numbers"]
        (x, left), (y, right) = operands
        contracted, together = (
            list(zip(a, b, strict=True)),
            list(zip(a_batch, b_batch, strict=True)),
        )
        if left is not None and right is None:
            self.see(left, y, contracted, together)
        elif right is not None and left is None:
            flip = [[(j, i) for i, j in pairs] for pairs in (contracted, together)]
            self.see(right, x, *flip)

    def convolution(self, equation: Any, operands: Sequence[Pair]) -> None:
        """See a conv_general_dilated: its inputs are the patches that the window covers."""
        (x, moving), (_, kernel) = operands
        if kernel is None or moving is not None:
            return
        given = equation.params
        if given["feature_group_count"] != 1 or given["batch_group_count"] != 1:
            self.problem[kernel.path] = "it is the kernel of a grouped convolution"
            return
        numbers = given["dimension_numbers"]
        summed = numbers.rhs_spec[1:]  # inputs, then the axes of the window
        sizes = [kernel.shape[i] for i in summed]
        patches = lax.conv_general_dilated_patches(
            x,
            sizes[1:],
            given["window_strides"],
            given["padding"],
            given["lhs_dilation"],
            given["rhs_dilation"],
            dimension_numbers=lax.ConvDimensionNumbers(*numbers),
            precision=PRECISION,
        )
        X = jnp.moveaxis(patches, numbers.out_spec[1], -1)
        X = X.reshape(*X.shape[:-1], *sizes)
        self.see(kernel, X, list(zip(summed, range(X.ndim - len(sizes), X.ndim), strict=True)), [])

    # ------------------------------------------------------------------------------- equations

    def view_of(self, equation: Any, operands: Sequence[Pair]) -> View | None:
        """Return what the result of an equation is a view of, if it rearranges one."""
        name, given = equation.primitive.name, equation.params
        view = operands[0][1] if operands else None
        if view is None:
            return None
        shape = equation.outvars[0].aval.shape
        if name in ELEMENTWISE:
            return view
        if name == "transpose":
            return views.transpose(view, given["permutation"])
        if name in ("reshape", "squeeze", "expand_dims"):
            return views.reshape(view, shape)
        if name == "broadcast_in_dim":
            return views.reshape(view, shape) if math.prod(shape) == math.prod(view.shape) else None
        if name == "slice" and given["strides"] is None:
            starts, ends = given["start_indices"], given["limit_indices"]
            sizes = [end - start for start, end in zip(starts, ends, strict=True)]
            return views.taken(view, starts, sizes, self.batch(view.path))
        if name == "dynamic_slice":
            starts = [start for start, _ in operands[1:]]
            return views.taken(view, starts, given["slice_sizes"], self.batch(view.path))
        return None

    def scan(self, equation: Any, operands: Sequence[Pair]) -> list[Pair]:
        """Run a scan whose body may multiply: a stack of layers, or weights it closes over."""
        given = equation.params
        body, length, reverse = given["jaxpr"], given["length"], given["reverse"]
        consts, carried = _constant_and_carried(equation)
        fixed, init, stacked = (
            operands[:consts],
            operands[consts : consts + carried],
            operands[consts + carried :],
        )
        kept = _unchanged(body, consts, carried)
        slices = [self.first_axis(view) for _, view in stacked]

        def step(state, slice_):
            carry, count, self.sums = state
            i = length - 1 - count if reverse else count
            views_of = [view and view(i) for view in slices]
            held = [view if keep else None for (_, view), keep in zip(init, kept, strict=True)]
            inner = [*fixed, *zip(carry, held, strict=True), *zip(slice_, views_of, strict=True)]
            out = [x for x, _ in self.run(body.jaxpr, body.consts, inner)]
            return (out[:carried], count + 1, self.sums), out[carried:]

        state = [x for x, _ in init], jnp.zeros((), jnp.int32), self.sums
        (carry, _, self.sums), ys = lax.scan(
            step, state, [x for x, _ in stacked], length, reverse, given["unroll"]
        )
        held = [view if keep else None for (_, view), keep in zip(init, kept, strict=True)]
        return [*zip(carry, held, strict=True), *((y, None) for y in ys)]

    def first_axis(self, view: View | None) -> Callable[[Any], View] | None:
        """Return index -> view of one entry along the first axis, if that is a batch axis."""
        if view is None or not view.axes[0]:
            return None
        parts, path = view.axes[0], view.path
        if parts[0].axis not in self.batch(path):
            return None
        if not views.is_whole(parts, self.shapes[path][parts[0].axis]):
            return None
        return lambda i: View(path, view.axes[1:], {**view.fixed, parts[0].axis: i})

    def while_loop(self, equation: Any, operands: Sequence[Pair]) -> list[Pair]:
        """Run a while loop whose body may multiply."""
        given = equation.params
        test, body = given["cond_jaxpr"], given["body_jaxpr"]
        split, consts = given["cond_nconsts"], given["body_nconsts"]
        of_test, fixed = operands[:split], operands[split : split + consts]
        init = operands[split + consts :]
        kept = _unchanged(body, consts, len(init))
        held = [view if keep else None for (_, view), keep in zip(init, kept, strict=True)]

        def go_on(state):
            inner = [(x, None) for x in (*(x for x, _ in of_test), *state[0])]
            return self.run(test.jaxpr, test.consts, inner)[0][0]

        def step(state):
            carry, self.sums = state
            inner = [*fixed, *zip(carry, held, strict=True)]
            return [x for x, _ in self.run(body.jaxpr, body.consts, inner)], self.sums

        carry, self.sums = lax.while_loop(go_on, step, ([x for x, _ in init], self.sums))
        return list(zip(carry, held, strict=True))

    def cond(self, equation: Any, operands: Sequence[Pair]) -> list[Pair]:
        """Run the branch that is taken; what the others would have seen does not count."""
        (index, _), *rest = operands
        known = [view for _, view in rest]
        before = self.sums

        def branch(closed: ClosedJaxpr):
            def run(sums, *values):
                self.sums = sums
                inner = list(zip(values, known, strict=True))
                return [x for x, _ in self.run(closed.jaxpr, closed.consts, inner)], self.sums

            return run

        branches = [branch(closed) for closed in equation.params["branches"]]
        values = [x for x, _ in rest]
        out, self.sums = lax.switch(index.astype(jnp.int32), branches, before, *values)
        return [(x, None) for x in out]

    def run(self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[Pair]) -> list[Pair]:
        """Return the results of a jaxpr, and what of them are views."""
        known: dict[Any, Pair] = {}
        known.update(zip(jaxpr.constvars, [(c, None) for c in consts], strict=True))
        known.update(zip(jaxpr.invars, operands, strict=True))

        def read(var) -> Pair:
            return (var.val, None) if isinstance(var, Literal) else known[var]

        for equation in jaxpr.eqns:
            given = [read(var) for var in equation.invars]
            known.update(zip(equation.outvars, self.step(equation, given), strict=True))
        return [read(var) for var in jaxpr.outvars]

    def step(self, equation: Any, operands: Sequence[Pair]) -> list[Pair]:
        """Return the results of one equation."""
        name = equation.primitive.name
        if any(view is not None for _, view in operands):
            if name in CALLS:
                inner = equation.params[CALLS[name]]
                is_closed = isinstance(inner, ClosedJaxpr)
                jaxpr = inner.jaxpr if is_closed else inner
                return self.run(jaxpr, inner.consts if is_closed else (), operands)
            loops = {"scan": self.scan, "while": self.while_loop, "cond": self.cond}
            if name in loops:
                return loops[name](equation, operands)
            if name == "dot_general":
                self.product(equation, operands)
            if name == "conv_general_dilated":
                self.convolution(equation, operands)
        params: Any = equation.primitive.get_bind_params(equation.params)
        functions, params = params if isinstance(params, tuple) else ((), params)
        with equation.ctx.manager:
            result = equation.primitive.bind(*functions, *(x for x, _ in operands), **params)
        if name == "optimization_barrier":
            return [(y, view) for y, (_, view) in zip(result, operands, strict=True)]
        results = result if equation.primitive.multiple_results else [result]
        views_of = [self.view_of(equation, operands)] + [None] * (len(results) - 1)
        return list(zip(results, views_of, strict=True))


def _constant_and_carried(scan: Any) -> tuple[int, int]:
    """Return how many operands of a scan are constants and how many are carried.

    What is stacked has an axis more outside of the body than in it. The names of the parameters
    that say so changed in JAX 0.12.
    """
    body = scan.params["jaxpr"]

    def plain(outside, inside):
        return sum(x.aval.ndim == y.ndim for x, y in zip(outside, inside, strict=True))

    carried = plain(scan.outvars, body.out_avals)
    return plain(scan.invars, body.in_avals) - carried, carried


def _unchanged(body: ClosedJaxpr, consts: int, carried: int) -> list[bool]:
    """Return which carried values a loop hands on as they are."""
    inner, out = body.jaxpr.invars[consts : consts + carried], body.jaxpr.outvars[:carried]
    return [a is b for a, b in zip(inner, out, strict=True)]
