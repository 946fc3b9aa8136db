"""A whole model within a budget of parameters: which weight gets which rank, and the report."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks, _leaves
from .._leaves import Axes, Place, Where
from .._types import SVDResult
from ..lora.initial import finite
from .allocate import allocate, options, unit_of
from .factorize import Root, as_low_rank, nested, root
from .stored import fold

ALLOCATIONS = ("global", "uniform")

# A rank of a LowRank holds m + n + 1 numbers: a column, a row, and a value.
EXTRA = 1


class LeafReport(NamedTuple):
    """What became of one selected weight.

    Attributes:
        name: path of the leaf.
        shape: of the leaf.
        rank: None where it stays dense.
        before: its numbers before.
        after: its numbers after.
        error: |F (W - W') E^H|_F / |F W E^H|_F in its metrics; without any that of the matrix.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    before: int
    after: int
    error: float


class Report(NamedTuple):
    """What `to_budget` did; printed it is a table.

    Attributes:
        leaves: of each selected weight, in the order of the tree.
        before: numbers of all leaves of the tree, selected or not.
        after: the same after; never above the budget.
        budget: numbers that were allowed.
    """

    leaves: tuple[LeafReport, ...]
    before: int
    after: int
    budget: int

    def __str__(self) -> str:
        head = ("leaf", "shape", "rank", "before", "after", "error")
        table = [head] + [
            (
                leaf.name,
                "x".join(map(str, leaf.shape)),
                "dense" if leaf.rank is None else str(leaf.rank),
                f"{leaf.before:,}",
                f"{leaf.after:,}",
                f"{leaf.error:.4f}",
            )
            for leaf in self.leaves
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                text.ljust(width) if i < 2 else text.rjust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        ]
        share = 100 * self.after / max(self.before, 1)
        return "\n".join(
            [
                *lines,
                f"{self.after:,} of {self.before:,} parameters kept ({share:.1f} %), "
                f"{self.budget:,} allowed",
            ]
        )


class Decomposed(NamedTuple):
    """One weight, decomposed once for every rank that may be chosen.

    Attributes:
        place: of the leaf.
        shape: of its matrices (..., m, n).
        factors: SVDResult of NumPy arrays, up to break-even.
        values: (..., min(m, n)), in the metrics.
    """

    place: Place
    shape: tuple[int, ...]
    factors: SVDResult
    values: np.ndarray


def allowed(name: str, budget: Any, total: int) -> int:
    """Return a budget in numbers, from a share of ``total`` or a number; or raise."""
    if isinstance(budget, (float, np.floating)):
        if not 0 < budget < 1:
            raise ValueError(
                f"{name}: `budget` as a share of all parameters must satisfy 0 < budget < 1, got "
                f"{budget}; as a number of parameters it is an int"
            )
        return math.floor(float(budget) * total)
    return _checks.static_int(name, "budget", budget, 1, 2**62)


def size(tree: Any) -> int:
    """Return how many numbers a tree holds."""
    return sum(math.prod(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves(tree))


def metrics_of(
    name: str, metrics: Any, places: Mapping[str, Place], params: Any
) -> dict[str, tuple[Any, Any]]:
    """Return the metrics of rows and columns of every selected leaf, or raise."""
    if metrics is None:
        return dict.fromkeys(places, (None, None))
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{name}: `metrics` must be None or a dict from paths to metrics, got a "
            f"{type(metrics).__name__}"
        )
    named = _leaves.paths(params)
    unknown = sorted(set(metrics) - {path for path, _ in named})
    if unknown:
        raise ValueError(
            f"{name}: `metrics` must be of leaves, got one for {unknown[0]!r}; the paths are "
            f"{_leaves.listed(named)}"
        )
    missing = [path for path in places if path not in metrics]
    if missing:
        raise ValueError(
            f"{name}: `metrics` must have one for every selected leaf (None for none), got none "
            f"for {missing[0]!r}; `where` selects {', '.join(places)}"
        )
    pairs = {path: metrics[path] for path in places}
    return {
        path: (pair[0], pair[1]) if isinstance(pair, tuple) and len(pair) == 2 else (pair, None)
        for path, pair in pairs.items()
    }


def break_even(shape: tuple[int, ...]) -> int:
    """Return the largest rank that is cheaper than the dense matrix, or 0."""
    m, n = shape[-2:]
    return max((m * n - 1) // (m + n + EXTRA), 0)


@jax.jit
def _decompose(W: jax.Array, inner: Root, outer: Root) -> tuple[SVDResult, jax.Array]:
    return nested(W, min(W.shape[-2:]), inner, outer, "full")


def decompose(
    name: str, params: Any, metrics: Any, where: Where, axes: Axes, progress: Any
) -> dict[str, Decomposed]:
    """Return every selected weight decomposed, by path."""
    places = _leaves.select(params, where, axes, name=name)
    pairs = metrics_of(name, metrics, places, params)
    found: dict[str, Decomposed] = {}
    leaves = jax.tree.leaves(params)
    for count, (path, place) in enumerate(places.items(), 1):
        W = _checks.working(_leaves.as_matrix(leaves[place.index], place))
        if isinstance(W, Tracer):
            raise TypeError(f"{name}: leaf {path!r} must be a concrete array, got a traced one")
        finite(name, path, W)
        inner, outer = (
            root(name, f"metrics[{path!r}]", metric, W, axis)
            for metric, axis in zip(pairs[path], (-2, -1), strict=True)
        )
        (U, s, Vh), values = _decompose(W, inner, outer)
        most = break_even(W.shape)
        kept = SVDResult(U[..., :most], s[..., :most], Vh[..., :most, :])
        found[path] = Decomposed(
            place, W.shape, jax.tree.map(np.asarray, kept), np.asarray(values, np.float64)
        )
        if progress is not None:
            progress(path, count, len(places))
    return found


def smallest(found: Mapping[str, Decomposed], others: int, min_rank: int) -> int:
    """Return the fewest numbers that a tree can be brought to."""
    values = {path: d.values / unit_of(d.values) for path, d in found.items()}
    costs = (options(values[p], d.shape, min_rank, EXTRA).costs[0] for p, d in found.items())
    return others + sum(int(cost) for cost in costs)


def _uniform(found: Mapping[str, Decomposed], budget: int, min_rank: int) -> dict[str, int | None]:
    """Return ranks that keep about the same share of every weight, the largest that fits."""

    def ranks(share: float) -> dict[str, int | None]:
        chosen = {}
        for path, (_, shape, _, _) in found.items():
            *_, m, n = shape
            rank = max(min_rank, math.floor(share * m * n / (m + n + EXTRA)))
            chosen[path] = rank if rank <= break_even(shape) else None
        return chosen

    def cost(chosen: Mapping[str, int | None]) -> int:
        return sum(numbers(d.shape, chosen[path]) for path, d in found.items())

    low, high = 0.0, 1.0
    if cost(ranks(high)) <= budget:
        return ranks(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(ranks(middle)) <= budget else (low, middle)
    return ranks(low)


def numbers(shape: tuple[int, ...], rank: int | None) -> int:
    """Return how many numbers a weight (..., m, n) holds at a rank, None for dense."""
    *batch, m, n = shape
    return math.prod(batch) * (m * n if rank is None else rank * (m + n + EXTRA))


def _weights(
    name: str, found: Mapping[str, Decomposed], relative: bool, gates: Any
) -> dict[str, float]:
    """Return what the values of each weight are multiplied with before they are compared."""
    weights = dict.fromkeys(found, 1.0)
    if gates is not None:
        if not isinstance(gates, Mapping) or set(gates) != set(found):
            raise ValueError(
                f"{name}: `gates` must come from rank_gates for the same leaves, got "
                f"{_checks.describe(gates)}"
            )
        # A direction is kept if s > t: among leaves, by (s / t)^2 for what it costs to keep.
        for path, d in found.items():
            weights[path] = numbers(d.shape, 1) ** 0.5 * math.exp(-float(gates[path]))
        largest = max(weights.values())
        return {path: weight / largest for path, weight in weights.items()}
    if relative:
        for path, d in found.items():
            unit = unit_of(d.values)
            norm = unit * float(np.linalg.norm(d.values / unit))
            weights[path] = 1 / norm if norm > 0 else 1.0
    return weights


def to_budget(
    params: Any,
    budget: float,
    metrics: Any = None,
    where: Where = None,
    axes: Axes = None,
    *,
    allocation: str = "global",
    relative: bool = False,
    gates: Any = None,
    min_rank: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[Any, Report]:
    """Return the parameters within a budget, weights replaced by factors, and a report.

    Every selected weight is decomposed once, in its metrics (`factorize`). ``allocation`` "global"
    then minimises the sum of |F (W - W') E^H|_F^2 over all weights (`allocate`); "uniform" keeps
    the same share of each. A weight stays dense, as the array it was, where factors would be
    larger. A compressed leaf becomes LowRank(U, s, Vh), of r (m + n + 1) numbers, stacked weights
    with their leading axes; a leaf of more than two axes that is no stack becomes a `Folded`. The
    factors have the dtype of the leaf, those of float8 are bfloat16.
    `densify` gives arrays again.

    Cost: one full SVD of every selected weight; memory of the model once more, on the host.

    Args:
        params: pytree of concrete arrays.
        budget: share of all numbers in the tree, 0 < budget < 1, or how many, an int. Leaves that
            are not selected count too.
        metrics: by path of the leaf, as from `collect_gram`: the metric of its rows, in a form of
            `factorize`, or a pair (of rows, of columns), or None.
        where: leaves, as in `jaxsvd.regularizers`; default all matrices.
        axes: rows and columns of leaves with more than two axes, as there.
        allocation: "global" or "uniform".
        relative: compare errors relative to each weight's own |F W E^H|_F, as if all weights
            mattered alike.
        gates: from `rank_gates`, trained: the ranks follow them.
        min_rank: static; the least rank of a selected weight.
        progress: function (path, done, total), called after each decomposition.

    Returns:
        (params, Report). ``print(report)`` shows a table.

    Raises:
        TypeError: an argument is of another type; a traced leaf.
        ValueError: an argument does not fit, by name; NaN or Inf in a leaf, by path; a budget below
            the smallest possible.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> W = jnp.outer(jnp.arange(1.0, 9.0), jnp.ones(8))  # of rank one
        >>> params = {"a": W, "b": jnp.eye(8), "bias": jnp.zeros(8)}
        >>> small, report = jaxsvd.compress.to_budget(params, 0.7)
        >>> print(report)
        leaf  shape   rank  before  after   error
        a     8x8        1      64     17  0.0000
        b     8x8    dense      64     64  0.0000
        89 of 136 parameters kept (65.4 %), 95 allowed

    References:
        `factorize` and `allocate` name theirs.
    """
    name = "to_budget"
    allocation = _checks.choice(name, "allocation", allocation, ALLOCATIONS)
    relative = _checks.flag(name, "relative", relative)
    min_rank = _checks.static_int(name, "min_rank", min_rank, 1, 2**31)
    progress = None if progress is None else _checks.function(name, "progress", progress)
    total = size(params)
    wanted = allowed(name, budget, total)
    found = decompose(name, params, metrics, where, axes, progress)
    others = total - sum(numbers(d.shape, None) for d in found.values())
    least = smallest(found, others, min_rank)
    if wanted < least:
        raise ValueError(
            f"{name}: `budget` must be at least {least} of {total} parameters, the smallest "
            f"possible, got {budget}" + (f", which is {wanted}" if wanted != budget else "")
        )
    weights = _weights(name, found, relative, gates)
    shapes = {path: d.shape for path, d in found.items()}
    if allocation == "uniform":
        ranks = _uniform(found, wanted - others, min_rank)
    else:
        spectra = {path: weights[path] * d.values for path, d in found.items()}
        ranks = allocate(spectra, shapes, wanted - others, min_rank=min_rank, extra=EXTRA).ranks
    return _replaced(params, found, ranks, total, wanted)


def _replaced(
    params: Any,
    found: Mapping[str, Decomposed],
    ranks: Mapping[str, int | None],
    total: int,
    budget: int,
) -> tuple[Any, Report]:
    leaves = jax.tree.leaves(params)
    new, reports = {}, []
    for path, (place, shape, factors, values) in found.items():
        leaf, rank = leaves[place.index], ranks[path]
        squares = np.square(values / unit_of(values))
        lost = 0.0 if rank is None else float(np.sum(squares[..., rank:]))
        whole = float(np.sum(squares))
        new[path] = leaf
        if rank is not None:
            U, s, Vh = jax.tree.map(jnp.asarray, factors)
            kept = SVDResult(U[..., :rank], s[..., :rank], Vh[..., :rank, :])
            new[path] = fold(as_low_rank(kept, leaf.dtype), leaf, place)
        reports.append(
            LeafReport(
                path,
                tuple(leaf.shape),
                rank,
                numbers(shape, None),
                numbers(shape, rank),
                math.sqrt(lost / whole) if whole > 0 else 0.0,
            )
        )
    places = {path: d.place for path, d in found.items()}
    small = _leaves.replace(params, places, new)
    after = total + sum(leaf.after - leaf.before for leaf in reports)
    return small, Report(tuple(reports), total, after, budget)
