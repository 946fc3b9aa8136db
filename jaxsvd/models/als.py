"""Alternating least squares: explicit ratings, implicit feedback, and new users folded in."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks
from ..algorithms.products import product
from . import normal_equations
from .factors import Factors, bar, check_factors, check_fit, started
from .normal_equations import Plan
from .ratings import Ratings


class _Side(NamedTuple):
    """The ratings seen from users or from items: their plan, and the other index of each."""

    plan: Plan
    other: Any


def _side(data: Ratings, by_users: bool) -> _Side:
    here, other = (data.users, data.items) if by_users else (data.items, data.users)
    made = normal_equations.plan(here, other, data.shape[0 if by_users else 1])
    return jax.tree.map(jnp.asarray, _Side(made, other))


def _explicit(side: _Side, total: int, values, factors, bias, regularization, by_count: bool):
    """Return factors and biases of one side: least squares with the features [q, 1]."""
    features = jnp.concatenate([factors, jnp.ones_like(bias)[:, None]], axis=1)
    targets = values - bias[side.other]
    weights = jnp.ones_like(values)
    found = normal_equations.solve(
        side.plan, total, features, weights, targets, regularization, by_count
    )
    return found[:, :-1], found[:, -1]


def _implicit(side: _Side, total: int, values, factors, regularization, alpha):
    """Return factors of one side: all items count, those without feedback with weight 1."""
    weights = alpha * values
    targets = jnp.where(values > 0, 1 + weights, 0)
    G = product(factors.T, factors)
    return normal_equations.solve(
        side.plan, total, factors, weights, targets, regularization, False, G
    )


@functools.partial(jax.jit, static_argnames=("by_count",))
def _explicit_sweeps(state: Factors, values, sides, sweeps, regularization, by_count: bool):
    by_users, by_items = sides

    def sweep(_, s: Factors) -> Factors:
        n, rest = regularization, values - s.mean
        q, b = _explicit(by_items, s.items.shape[0], rest, s.users, s.user_bias, n, by_count)
        p, a = _explicit(by_users, s.users.shape[0], rest, q, b, n, by_count)
        return Factors(p, q, a, b, s.mean)

    return lax.fori_loop(0, sweeps, sweep, state)


@jax.jit
def _implicit_sweeps(state: Factors, values, sides, sweeps, regularization, alpha):
    by_users, by_items = sides

    def sweep(_, s: Factors) -> Factors:
        q = _implicit(by_items, s.items.shape[0], values, s.users, regularization, alpha)
        p = _implicit(by_users, s.users.shape[0], values, q, regularization, alpha)
        return s._replace(users=p, items=q)

    return lax.fori_loop(0, sweeps, sweep, state)


def _swept(step: Any, state: Factors, sweeps: int, progress: bool) -> Factors:
    """Return the state after all sweeps: at once, or one by one beside a progress bar."""
    if not progress:
        return step(state, sweeps=sweeps)
    advance, close = bar(progress, sweeps, "sweep")
    for _ in range(sweeps):
        state = jax.block_until_ready(step(state, sweeps=1))
        advance()
    close()
    return state


def als(
    data: Ratings,
    k: int = 20,
    *,
    sweeps: int = 10,
    regularization: float = 0.1,
    by_count: bool = False,
    seed: int = 0,
    start: Factors | None = None,
    progress: bool = False,
) -> Factors:
    """Return biased factors by alternating least squares on explicit ratings.

        min sum_(u,i) (r_ui - mean - b_u - b_i - p_u . q_i)^2
            + reg sum_u n_u |[p_u, b_u]|^2 + reg sum_i n_i |[q_i, b_i]|^2

    with n = 1, or the number of ratings of the user or item where ``by_count``. A sweep solves all
    items exactly, factors and bias at once, then all users. For ratings with Gaussian noise of
    variance v and factors and biases of variance t, reg = v / t is the maximum a posteriori.

    Cost: a sweep takes 2 (k + 1)^2 multiplications for each rating and (k + 1)^3 / 3 for each user
    and item, in chunks of bounded memory.

    Args:
        data: Ratings.
        k: static; factors.
        sweeps: how many.
        regularization: > 0.
        by_count: multiply it by the ratings of each user and item.
        seed: of the factors at the start.
        start: Factors to continue from (their mean stays).
        progress: show a bar by sweep (needs tqdm).

    Returns:
        Factors.

    Raises:
        TypeError: ``data`` is no Ratings, an argument no number.
        ValueError: an argument out of range; ``start`` of other shapes.
        ImportError: ``progress`` without tqdm.

    Example:
        >>> import numpy as np
        >>> from jaxsvd.models import recommender
        >>> users, items = np.divmod(np.arange(600), 20)
        >>> data = recommender.ratings(users, items, 3.0 + users % 2 * (items % 3))
        >>> state = recommender.als(data, 1, regularization=1e-3)
        >>> recommender.rmse(recommender.predict(state, users, items), data.values) < 1e-3
        True

    References:
        Zhou, Wilkinson, Schreiber and Pan (2008), AAIM, LNCS 5034 (``by_count``).
    """
    name = "recommender.als"
    k, sweeps = check_fit(name, data, k, ("sweeps", sweeps))
    dtype = data.values.dtype
    reg = jnp.asarray(_checks.positive(name, "regularization", regularization), dtype)
    by_count = _checks.flag(name, "by_count", by_count)
    first = started(name, start, data.shape, k, dtype, seed, 0.1)
    if start is None:
        first = first._replace(mean=jnp.asarray(np.mean(data.values, dtype=np.float64), dtype))
    step = functools.partial(
        _explicit_sweeps,
        values=jnp.asarray(data.values),
        sides=(_side(data, True), _side(data, False)),
        regularization=reg,
        by_count=by_count,
    )
    return _swept(step, first, sweeps, _checks.flag(name, "progress", progress))


def implicit_als(
    data: Ratings,
    k: int = 20,
    *,
    sweeps: int = 10,
    regularization: float = 0.1,
    alpha: float = 40.0,
    seed: int = 0,
    start: Factors | None = None,
    progress: bool = False,
) -> Factors:
    """Return factors of implicit feedback: how often or how long a user was with an item.

        min sum over all (u, i) of c_ui (p_ui - x_u . y_i)^2 + reg (sum |x_u|^2 + sum |y_i|^2)
        p_ui = 1 where r_ui > 0, else 0;   c_ui = 1 + alpha r_ui

    All pairs count, those without feedback as 0 with weight 1, at the cost of the feedback alone:
    Y^T C_u Y = Y^T Y + Y^T (C_u - I) Y. Mean and biases of the result are zero.

    Cost: as `als`, with k for k + 1.

    Args:
        data: Ratings, values >= 0.
        k: static; factors.
        sweeps: how many.
        regularization: > 0.
        alpha: > 0.
        seed: of the factors at the start.
        start: Factors to continue from.
        progress: show a bar by sweep (needs tqdm).

    Returns:
        Factors; `predict` gives the preference, about 0 to 1.

    Raises:
        TypeError: ``data`` is no Ratings, an argument no number.
        ValueError: a negative value; an argument out of range; ``start`` of other shapes.
        ImportError: ``progress`` without tqdm.

    Example:
        >>> from jaxsvd.models import recommender
        >>> plays = recommender.ratings([0, 0, 1, 2, 2], [0, 1, 0, 2, 3], [9, 3, 5, 8, 2])
        >>> state = recommender.implicit_als(plays, 2)
        >>> print(recommender.recommend(state, 1, 1, exclude_seen=plays)[0])
        [1]

    References:
        Hu, Koren and Volinsky (2008), ICDM, equations 3 to 5.
    """
    name = "recommender.implicit_als"
    k, sweeps = check_fit(name, data, k, ("sweeps", sweeps))
    _check_feedback(name, data)
    dtype = data.values.dtype
    step = functools.partial(
        _implicit_sweeps,
        values=jnp.asarray(data.values),
        sides=(_side(data, True), _side(data, False)),
        regularization=jnp.asarray(_checks.positive(name, "regularization", regularization), dtype),
        alpha=jnp.asarray(_checks.positive(name, "alpha", alpha), dtype),
    )
    first = started(name, start, data.shape, k, dtype, seed, 0.1)
    return _swept(step, first, sweeps, _checks.flag(name, "progress", progress))


def _check_feedback(name: str, data: Ratings) -> None:
    if data.values.min() < 0:
        worst = int(np.argmin(data.values))
        raise ValueError(
            f"{name}: `data` must hold feedback >= 0, got {data.values[worst]} of user "
            f"{data.users[worst]} for item {data.items[worst]}"
        )


def fold_in(
    state: Factors,
    data: Ratings,
    *,
    regularization: float = 0.1,
    by_count: bool = False,
    alpha: float | None = None,
) -> Factors:
    """Return the state with new users appended, the items as they are: no refit.

    A new user's factors and bias are the half sweep of `als` (or, with ``alpha``, of
    `implicit_als`) from the new ratings: exact for these items.

    Cost: that of half a sweep over the new ratings.

    Args:
        state: Factors of a fit.
        data: Ratings of the new users, numbered from 0; the items are those of the state.
        regularization: > 0, as in the fit.
        by_count: as in `als`.
        alpha: as in `implicit_als`; None for explicit ratings.

    Returns:
        Factors with users (users + new users, k); the first new one has the index ``users``.

    Raises:
        TypeError: ``state`` is no Factors, ``data`` no Ratings.
        ValueError: more items than the state has; an argument out of range.

    Example:
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 0, 1, 1], [0, 1, 0, 1], [1.0, 5.0, 5.0, 1.0])
        >>> state = recommender.als(data, 1)
        >>> more = recommender.fold_in(state, recommender.ratings([0], [0], [1.0], (1, 2)))
        >>> print(more.users.shape, recommender.recommend(more, 2, 1)[0])  # as user 0
        (3, 1) [1]
    """
    name = "recommender.fold_in"
    state = check_factors(name, state)
    check_fit(name, data, 1, ("sweeps", 1))
    if data.shape[1] > state.items.shape[0]:
        raise ValueError(
            f"{name}: `data` must have at most the {state.items.shape[0]} items of the state, got "
            f"{data.shape[1]}"
        )
    dtype = state.items.dtype
    reg = jnp.asarray(_checks.positive(name, "regularization", regularization), dtype)
    by_count = _checks.flag(name, "by_count", by_count)
    side, total = _side(data, True), data.shape[0]
    values = jnp.asarray(data.values, dtype)
    if alpha is None:
        p, b = _fold_explicit(side, values, state, reg, total, by_count)
    else:
        _check_feedback(name, data)
        a = jnp.asarray(_checks.positive(name, "alpha", alpha), dtype)
        p = _fold_implicit(side, values, state, reg, a, total)
        b = jnp.zeros((total,), dtype)
    return state._replace(
        users=jnp.concatenate([state.users, p]), user_bias=jnp.concatenate([state.user_bias, b])
    )


@functools.partial(jax.jit, static_argnames=("total", "by_count"))
def _fold_explicit(side, values, state: Factors, reg, total, by_count):
    rest = values - state.mean
    return _explicit(side, total, rest, state.items, state.item_bias, reg, by_count)


@functools.partial(jax.jit, static_argnames=("total",))
def _fold_implicit(side, values, state: Factors, reg, alpha, total):
    return _implicit(side, total, values, state.items, reg, alpha)
