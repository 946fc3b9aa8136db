"""Biased matrix factorization by stochastic gradient descent, as Funk fitted it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks
from .factors import Factors, bar, check_fit, non_negative, started
from .ratings import Ratings


class _Batches(NamedTuple):
    users: jax.Array  # (batches, size); entries that pad stand at user 0 and item 0
    items: jax.Array
    values: jax.Array  # less the mean
    there: jax.Array  # 1, or 0 for padding


@jax.jit
def _epochs(P: jax.Array, Q: jax.Array, batches: _Batches, orders, rates, regularization):
    """Return the tables after one epoch for each row of ``orders``, and their training RMSE.

    Biases are columns of the tables: P = [p, b_u, 1], Q = [q, 1, b_i], so that P_u . Q_i is the
    prediction and one gather and one scatter serve all; the ones do not move.
    """
    k, dtype = P.shape[1] - 2, P.dtype
    moves_p = (jnp.arange(k + 2) != k + 1).astype(dtype)[None, :]
    moves_q = (jnp.arange(k + 2) != k).astype(dtype)[None, :]

    def step(tables, batch: _Batches, rate):
        P, Q = tables
        p = P.at[batch.users].get(mode="promise_in_bounds")
        q = Q.at[batch.items].get(mode="promise_in_bounds")
        e = (batch.values - jnp.sum(p * q, axis=1)) * batch.there
        w = batch.there[:, None]
        dp = rate * moves_p * (e[:, None] * q - regularization * w * p)
        dq = rate * moves_q * (e[:, None] * p - regularization * w * q)
        P = P.at[batch.users].add(dp, mode="promise_in_bounds")
        Q = Q.at[batch.items].add(dq, mode="promise_in_bounds")
        return (P, Q), jnp.sum(e * e)

    def epoch(tables, x):
        order, rate = x
        pick = lambda i: jax.tree.map(lambda a: a[i], batches)  # noqa: E731
        tables, squares = lax.scan(lambda t, i: step(t, pick(i), rate), tables, order)
        return tables, jnp.sqrt(jnp.sum(squares) / jnp.sum(batches.there))

    tables, errors = lax.scan(epoch, (P, Q), (orders, rates))
    return *tables, errors


def sgd(
    data: Ratings,
    k: int = 20,
    *,
    epochs: int = 20,
    learning_rate: float | Callable[[int], float] = 0.005,
    regularization: float = 0.02,
    batch_size: int = 1024,
    initial_scale: float = 0.1,
    seed: int = 0,
    start: Factors | None = None,
    progress: bool = False,
    return_history: bool = False,
) -> Any:
    """Return biased factors fitted by stochastic gradient descent ("Funk SVD"), in one program.

        e = r - mean - b_u - b_i - p_u . q_i
        p_u += rate (e q_i - reg p_u)   q_i += rate (e p_u - reg q_i)   b += rate (e - reg b)

    The steps of a mini-batch are taken at once, from the same factors; their sum, not their mean,
    so that the rates of sequential SGD serve. Ratings are shuffled into batches once; each epoch
    takes the batches in an order of its own. Batches of a few thousand stay within 0.005 RMSE of
    sequential steps (benchmarks/recommender.py) as long as rate times the ratings that one user or
    item has in a batch stays well below 1.

    Cost: about 10 (k + 2) operations for each rating and epoch; memory (users + items) (k + 2).

    Args:
        data: Ratings.
        k: static; factors.
        epochs: passes over the ratings.
        learning_rate: a number > 0, or a function of the epoch (0, 1, ...), such as an optax
            schedule.
        regularization: >= 0, for each rating.
        batch_size: static.
        initial_scale: standard deviation of the factors at the start.
        seed: of factors, shuffle and orders.
        start: Factors to continue from (their mean stays).
        progress: show a bar by epoch (needs tqdm).
        return_history: return (Factors, RMSE on the training set during each epoch (epochs,)).

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
        >>> data = recommender.ratings(users, items, 3.0 + users % 2 - items % 3)
        >>> state = recommender.sgd(data, 2, epochs=60, learning_rate=0.02, batch_size=64)
        >>> recommender.rmse(recommender.predict(state, users, items), data.values) < 0.05
        True

    References:
        Funk (2006), "Netflix update: try this at home"; Koren, Bell and Volinsky (2009), IEEE
        Computer 42, equation 5.
    """
    name = "recommender.sgd"
    k, epochs = check_fit(name, data, k, ("epochs", epochs))
    size = _checks.static_int(name, "batch_size", batch_size, 1, 10**9)
    reg = non_negative(name, "regularization", regularization)
    scale = non_negative(name, "initial_scale", initial_scale)
    if callable(learning_rate):
        rates = [_checks.positive(name, "learning_rate", learning_rate(e)) for e in range(epochs)]
    else:
        rates = [_checks.positive(name, "learning_rate", learning_rate)] * epochs
    count, dtype = data.values.size, data.values.dtype
    first = started(name, start, data.shape, k, dtype, seed, scale)
    mean = first.mean if start is not None else np.mean(data.values, dtype=np.float64)
    mean = np.asarray(mean, dtype)
    size = min(size, count)
    many = -(-count // size)
    rng = np.random.default_rng([seed, 1])
    places = np.pad(rng.permutation(count), (0, many * size - count)).reshape(many, size)
    there = (np.arange(many * size) < count).reshape(many, size)
    u, i, r = (
        jnp.asarray(np.where(there, x[places], 0))
        for x in (data.users, data.items, data.values - mean)
    )
    batches = _Batches(u, i, r, jnp.asarray(there.astype(dtype)))
    orders = np.stack([rng.permutation(many) for _ in range(epochs)]).astype(np.int32)
    one = jnp.ones
    P = jnp.concatenate([first.users, first.user_bias[:, None], one((data.shape[0], 1), dtype)], 1)
    Q = jnp.concatenate([first.items, one((data.shape[1], 1), dtype), first.item_bias[:, None]], 1)
    if start is None:  # users and items without ratings
        P = P.at[np.bincount(data.users, minlength=data.shape[0]) == 0, :k].set(0)
        Q = Q.at[np.bincount(data.items, minlength=data.shape[1]) == 0, :k].set(0)
    rates, reg = np.asarray(rates, dtype), jnp.asarray(reg, dtype)
    advance, close = bar(_checks.flag(name, "progress", progress), epochs, "epoch")
    history = []
    for at in range(0, epochs, 1 if progress else epochs):
        some = slice(at, at + 1 if progress else epochs)
        P, Q, errors = _epochs(P, Q, batches, orders[some], rates[some], reg)
        history.append(jax.block_until_ready(errors) if progress else errors)
        advance()
    close()
    state = Factors(P[:, :k], Q[:, :k], P[:, k], Q[:, k + 1], jnp.asarray(mean))
    ask = _checks.flag(name, "return_history", return_history)
    return (state, jnp.concatenate(history)) if ask else state
