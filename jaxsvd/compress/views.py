"""Where the entries of a leaf went: an array that is a leaf, rearranged.

A model seldom multiplies with a weight as it is stored: it casts, transposes, reshapes it, takes
one of a stack. A `View` says of each axis of such an array which parts of which axes of the leaf it
holds, so that a product with it can be told in axes of the leaf.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Part(NamedTuple):
    """Part of an axis of a leaf: the entries base + stride i for 0 <= i < size.

    Attributes:
        axis: of the leaf.
        stride: distance of neighbours.
        size: how many; never one.
    """

    axis: int
    stride: int
    size: int


class View(NamedTuple):
    """An array that holds a leaf, or the piece of it at fixed indices of some axes.

    Attributes:
        path: of the leaf.
        axes: for each axis of the array the parts it runs over, the last fastest.
        fixed: index by axis of the leaf, possibly traced.
    """

    path: str
    axes: tuple[tuple[Part, ...], ...]
    fixed: dict[int, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(math.prod(part.size for part in axis) for axis in self.axes)


def whole(path: str, shape: Sequence[int]) -> View:
    """Return the view of a leaf itself."""
    axes = tuple((Part(i, 1, size),) if size != 1 else () for i, size in enumerate(shape))
    return View(path, axes, {})


def transpose(view: View, permutation: Sequence[int]) -> View:
    """Return the view with its axes in another order."""
    return view._replace(axes=tuple(view.axes[i] for i in permutation))


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """Return the view in another shape, or None if an axis would hold no regular part."""
    left = [part for axis in view.axes for part in axis][::-1]
    axes = []
    for size in shape:
        found: list[Part] = []
        while size > 1:
            if not left:
                return None
            axis, stride, length = left.pop()
            if length > size:  # its slower part belongs here, the faster to the next axis
                if length % size:
                    return None
                left.append(Part(axis, stride, length // size))
                stride, length = stride * (length // size), size
            if size % length:
                return None
            found.append(Part(axis, stride, length))
            size //= length
        axes.append(tuple(found))
    return None if left else view._replace(axes=tuple(axes))


def taken(view: View, starts: Sequence[Any], sizes: Sequence[int], batch: Sequence[int]):
    """Return the view of a slice: whole axes, and single entries of whole batch axes; or None."""
    axes, fixed = [], dict(view.fixed)
    for parts, start, size, length in zip(view.axes, starts, sizes, view.shape, strict=True):
        if size == length:
            axes.append(parts)
        elif size == 1 and is_whole(parts, length) and parts[0].axis in batch:
            axes.append(())
            fixed[parts[0].axis] = start
        else:
            return None
    return View(view.path, tuple(axes), fixed)


def is_whole(parts: Sequence[Part], size: int) -> bool:
    """Return whether parts are one axis of the leaf, of that size, in order."""
    return len(parts) == 1 and parts[0].stride == 1 and parts[0].size == size


def covers(parts: Sequence[Part], axes: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether parts are all of these axes of a leaf and nothing else."""
    for axis in {part.axis for part in parts} | set(axes):
        expected = 1
        for part in sorted((p for p in parts if p.axis == axis), key=lambda p: p.stride):
            if part.stride != expected:
                return False
            expected *= part.size
        if expected != (shape[axis] if axis in axes else 0):
            return False
    return True


def in_order(x: jax.Array, parts: Sequence[Part], axes: Sequence[int]) -> jax.Array:
    """Return x with its last axis, which runs over parts, in the order of the leaf's axes."""
    batch = x.shape[:-1]
    x = x.reshape(*batch, *(part.size for part in parts))
    key = {axis: i for i, axis in enumerate(axes)}
    order = sorted(range(len(parts)), key=lambda i: (key[parts[i].axis], -parts[i].stride))
    x = x.transpose(*range(len(batch)), *(len(batch) + i for i in order))
    return x.reshape(*batch, -1)
