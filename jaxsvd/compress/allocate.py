"""Ranks under a budget of parameters: a knapsack of one choice per weight, solved exactly."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _checks

# Sums that the dynamic programme holds at once. The first, narrow passes find a better choice, with
# which the next ones need fewer; beyond the last the result is near optimal, by `bound`.
WIDTHS = (100, 1_000, 10_000)


class Allocation(NamedTuple):
    """Ranks, what they cost and what they lose.

    Attributes:
        ranks: of each weight, None for one that stays dense; as the spectra were given, a dict or
            a tuple.
        params: numbers kept.
        error: sum of the squares of all values left out.
        bound: no choice within the budget has an error below it; equal to ``error`` where that is
            known to be the least.
    """

    ranks: Any
    params: int
    error: float
    bound: float


class Options(NamedTuple):
    """The choices of one weight that are worth making, cheapest first.

    Attributes:
        ranks: -1 for dense.
        costs: numbers kept, ascending.
        errors: descending.
    """

    ranks: np.ndarray
    costs: np.ndarray
    errors: np.ndarray


def unit_of(values: np.ndarray) -> float:
    """Return the power of two of the largest value: in it no square over- or underflows."""
    largest = float(np.max(values, initial=0))
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 5e-324


def options(spectrum: np.ndarray, shape: tuple[int, ...], least: int, extra: int) -> Options:
    """Return the choices of a weight (..., m, n): ranks below break-even, and dense."""
    *batch, m, n = shape
    copies = math.prod(batch)
    squares = np.sum(np.square(spectrum.reshape(copies, -1)), axis=0)
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    ranks = np.arange(least, len(tails))
    costs = copies * (m + n + extra) * ranks
    cheap = costs < copies * m * n
    ranks, costs = np.append(ranks[cheap], -1), np.append(costs[cheap], copies * m * n)
    errors = np.where(ranks < 0, 0.0, tails[ranks])
    best = np.minimum.accumulate(np.append(np.inf, errors))[:-1]
    worth = errors < best
    return Options(ranks[worth], costs[worth], errors[worth])


def _hull(costs: np.ndarray, errors: np.ndarray) -> list[int]:
    """Return the indices of the lower convex hull: those a Lagrange multiplier can choose."""
    kept: list[int] = []
    for i in range(len(costs)):
        while len(kept) > 1:
            a, b = kept[-2:]
            along = (errors[a] - errors[b]) * (costs[i] - costs[b])
            if along > (errors[b] - errors[i]) * (costs[b] - costs[a]):
                break
            kept.pop()
        kept.append(i)
    return kept


def _greedy(classes: list[Options], budget: int) -> tuple[list[int], float]:
    """Return a choice within the budget and the multiplier of the relaxed problem.

    All steps along the hulls, by what they save for a number kept; up to the first that does not
    fit it is optimal, and that one's ratio is the multiplier.
    """
    steps = []
    for c, (_, costs, errors) in enumerate(classes):
        hull = _hull(costs, errors)
        for a, b in itertools.pairwise(hull):
            price = int(costs[b] - costs[a])
            steps.append(((errors[a] - errors[b]) / price, c, b, price))
    steps.sort(key=lambda step: -step[0])
    chosen = [0] * len(classes)
    left = budget - sum(int(o.costs[0]) for o in classes)
    multiplier, closed = 0.0, set()
    for ratio, c, index, price in steps:
        if c not in closed and price <= left:
            chosen[c], left = index, left - price
        else:
            multiplier = multiplier or ratio
            closed.add(c)
    return chosen, multiplier


def _thinned(order: np.ndarray, cost: np.ndarray, regret: np.ndarray, width: int) -> np.ndarray:
    """Return of each of ``width`` intervals of cost the sum of least regret."""
    low, high = int(cost[order[0]]), int(cost[order[-1]])
    interval = (cost[order] - low) // ((high - low) // width + 1)
    best = np.lexsort((regret[order], interval))
    _, first = np.unique(interval[best], return_index=True)
    return order[best[first]]


def _search(
    classes: list[Options], budget: int, chosen: list[int], multiplier: float, width: int
) -> tuple[list[int], float]:
    """Return a better choice if there is one, and a bound, by dynamic programming.

    With the regret r_ij = e_ij + t c_ij - min_j (e_ij + t c_ij) of each choice at the multiplier t,
    every solution has error = bound + sum r + t (budget - cost): one that is better than the chosen
    one has a sum of regrets below the gap between them. That leaves few choices and few sums.
    """
    lagrange = [o.errors + multiplier * o.costs for o in classes]
    bound = sum(float(x.min()) for x in lagrange) - multiplier * budget
    value = sum(float(o.errors[i]) for o, i in zip(classes, chosen, strict=True))
    rounding = 1e-12 * sum(float(o.errors[0]) for o in classes)
    gap = value - bound + rounding
    regrets = [x - x.min() for x in lagrange]
    kept = [np.flatnonzero(r <= gap) for r in regrets]
    low = np.cumsum([int(o.costs[k].min()) for o, k in zip(classes, kept, strict=True)][::-1])
    high = np.cumsum([int(o.costs[k].max()) for o, k in zip(classes, kept, strict=True)][::-1])
    low, high = np.append(low[::-1][1:], 0), np.append(high[::-1][1:], 0)

    cost, error, regret = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    stages, exact = [], True
    for c, (o, k) in enumerate(zip(classes, kept, strict=True)):
        parent = np.repeat(np.arange(len(cost)), len(k))
        option = np.tile(k, len(cost))
        cost = cost[parent] + o.costs[option]
        error = error[parent] + o.errors[option]
        regret = regret[parent] + regrets[c][option]
        # What cannot be spent any more is lost at the multiplier too.
        regret_at_least = regret + multiplier * np.maximum(budget - cost - high[c], 0)
        able = np.flatnonzero((cost + low[c] <= budget) & (regret_at_least <= gap))
        order = able[np.lexsort((error[able], cost[able]))]
        best = np.minimum.accumulate(np.append(np.inf, error[order]))[:-1]
        order = order[error[order] < best]  # no cheaper one is as good
        if len(order) > width:
            exact = False
            order = np.sort(_thinned(order, cost, regret, width))
        cost, error, regret = cost[order], error[order], regret[order]
        stages.append((parent[order], option[order]))
    if len(error) and error.min() < value:
        state = int(np.argmin(error))
        value, chosen = float(error[state]), []
        for parent, option in reversed(stages):
            chosen.append(int(option[state]))
            state = int(parent[state])
        chosen = chosen[::-1]
    return chosen, value if exact else bound


def _given(name: str, spectra: Any, shapes: Any) -> tuple[list[Any], list[Any], Any]:
    if isinstance(spectra, Mapping):
        if not isinstance(shapes, Mapping) or set(shapes) != set(spectra):
            raise ValueError(f"{name}: `shapes` must have the keys of `spectra`, got others")
        return list(spectra.values()), [shapes[key] for key in spectra], list(spectra)
    if not isinstance(spectra, Sequence) or not isinstance(shapes, Sequence):
        raise TypeError(
            f"{name}: `spectra` and `shapes` must be two dicts or two lists, got "
            f"{_checks.describe(spectra)} and {_checks.describe(shapes)}"
        )
    if len(spectra) != len(shapes):
        raise ValueError(
            f"{name}: `shapes` must be as many as `spectra`, {len(spectra)}, got {len(shapes)}"
        )
    return list(spectra), list(shapes), None


def allocate(
    spectra: Any, shapes: Any, budget: int, *, min_rank: int = 1, extra: int = 0
) -> Allocation:
    """Return the ranks that lose least within a budget, over all weights at once.

        min sum_i sum_{j > r_i} s_ij^2   with   sum_i c_i(r_i) <= budget

    where a weight (m, n) costs r (m + n) at rank r, or m n if it stays dense, which loses nothing;
    ranks from break-even on, r (m + n) >= m n, are never chosen. That jump makes the problem
    nonconvex. It is solved exactly: a Lagrange multiplier gives a bound and a first choice, and a
    dynamic programme searches all choices that could be better. If that holds more than 10,000
    sums at once, the worst are dropped and ``bound`` says how far from the optimum the result can
    be; it is ``error`` otherwise. The budget is never exceeded.

    Cost: sorting all singular values; on the host, in double precision.

    Args:
        spectra: singular values (..., min(m, n)) of each weight, descending; a dict or a list. To
            weigh one weight against another, scale its values.
        shapes: (..., m, n) of each, alike; weights stacked along leading axes get one rank.
        budget: numbers to keep at most.
        min_rank: static; the least rank of a weight.
        extra: numbers that a rank costs beside m + n (1 where the values are stored apart).

    Returns:
        Allocation(ranks, params, error, bound).

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument does not fit, by name; a budget below the smallest possible.

    Example:
        >>> import jaxsvd
        >>> spectra = {"a": [5.0, 1.0, 1.0, 1.0], "b": [3.0, 3.0, 3.0, 3.0]}
        >>> shapes = {"a": (4, 4), "b": (4, 4)}
        >>> jaxsvd.compress.allocate(spectra, shapes, 24)
        Allocation(ranks={'a': 1, 'b': None}, params=24, error=3.0, bound=3.0)

    References:
        Kellerer, Pferschy and Pisinger (2004), "Knapsack Problems", chapter 11 on the
        multiple-choice knapsack problem; Pisinger (1995), on its minimal core.
    """
    name = "allocate"
    values, sizes, keys = _given(name, spectra, shapes)
    budget = _checks.static_int(name, "budget", budget, 0, 2**62)
    min_rank = _checks.static_int(name, "min_rank", min_rank, 0, 2**31)
    extra = _checks.static_int(name, "extra", extra, 0, 2**31)
    prepared = []
    for i, (spectrum, shape) in enumerate(zip(values, sizes, strict=True)):
        which = repr(keys[i]) if keys else str(i)
        shape = tuple(int(x) for x in shape)
        spectrum = np.asarray(spectrum, np.float64)
        if len(shape) < 2 or spectrum.shape != (*shape[:-2], min(shape[-2:])):
            raise ValueError(
                f"{name}: `spectra` must hold min(m, n) values for each matrix, got shape "
                f"{spectrum.shape} for {which} of shape {shape}"
            )
        if not np.all(np.isfinite(spectrum)) or np.any(spectrum < 0):
            raise ValueError(
                f"{name}: `spectra` must be finite and not negative, got others for {which}"
            )
        prepared.append((-np.sort(-spectrum, axis=-1), shape))
    unit = max((unit_of(spectrum) for spectrum, _ in prepared), default=1.0)
    classes = [options(spectrum / unit, shape, min_rank, extra) for spectrum, shape in prepared]
    smallest = sum(int(o.costs[0]) for o in classes)
    if budget < smallest:
        raise ValueError(
            f"{name}: `budget` must be at least {smallest}, the smallest possible, got {budget}"
        )
    chosen, multiplier = _greedy(classes, budget)
    bound = -math.inf
    for width in WIDTHS:
        if bound < sum(float(o.errors[i]) for o, i in zip(classes, chosen, strict=True)):
            chosen, bound = _search(classes, budget, chosen, multiplier, width)
    picked = [int(o.ranks[i]) for o, i in zip(classes, chosen, strict=True)]
    ranks = [None if r < 0 else r for r in picked]
    return Allocation(
        dict(zip(keys, ranks, strict=True)) if keys is not None else tuple(ranks),
        sum(int(o.costs[i]) for o, i in zip(classes, chosen, strict=True)),
        sum(float(o.errors[i]) for o, i in zip(classes, chosen, strict=True)) * unit * unit,
        bound * unit * unit,
    )
