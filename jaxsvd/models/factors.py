"""The state of a recommender: factors and biases; predictions, top-n lists and their quality."""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _checks
from .._files import load_arrays, save_arrays
from .observed import sampled
from .ratings import Ratings

# Users whose scores for all items are held at a time.
USERS_AT_ONCE = 256


class Factors(NamedTuple):
    """A fitted recommender: rating = mean + user bias + item bias + p_u . q_i; a pytree.

    Users and items without ratings have zero factors and biases.

    Attributes:
        users: p, (users, k).
        items: q, (items, k).
        user_bias: (users,).
        item_bias: (items,).
        mean: of all ratings, (); 0 for implicit feedback.
    """

    users: jax.Array
    items: jax.Array
    user_bias: jax.Array
    item_bias: jax.Array
    mean: jax.Array


class Ranking(NamedTuple):
    """Quality of top-n lists, means over the users who have a relevant item in the test set.

    Attributes:
        precision: relevant items in the list by n.
        recall: relevant items in the list by all relevant ones.
        ndcg: discounted gain, 1 / log2(1 + place) for each relevant item, by that of the best list.
        users: how many users took part.
    """

    precision: float
    recall: float
    ndcg: float
    users: int


def integers(name: str, argument: str, x: Any) -> jax.Array:
    """Return x as an array of integers, or raise."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name}: `{argument}` must hold integers, got dtype {x.dtype}")
    return x


def check_factors(name: str, state: Any) -> Factors:
    """Return a state, or raise."""
    if not isinstance(state, Factors):
        raise TypeError(f"{name}: `state` must be Factors, got {_checks.describe(state)}")
    return state


def check_fit(name: str, data: Any, k: Any, iterations: tuple[str, Any]) -> tuple[int, int]:
    """Return static k and iterations from checked arguments of a fit, or raise."""
    if not isinstance(data, Ratings):
        raise TypeError(
            f"{name}: `data` must be Ratings (recommender.ratings makes them), got "
            f"{_checks.describe(data)}"
        )
    argument, count = iterations
    return (
        _checks.static_int(name, "k", k, 1, min(data.shape)),
        _checks.static_int(name, argument, count, 1, 10**9),
    )


def non_negative(name: str, argument: str, value: Any) -> float:
    """Return a number >= 0, or raise."""
    value = _checks.positive(name, argument, value) if value != 0 else 0.0
    return float(value)


def bar(progress: bool, total: int, unit: str):
    """Return a function that advances a progress bar, and one that closes it."""
    if not progress:
        return lambda: None, lambda: None
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            'recommender: `progress=True` needs tqdm: pip install "jaxsvd[io]"'
        ) from None
    shown = tqdm(total=total, unit=unit)
    return shown.update, shown.close


def started(name: str, start: Any, shape: tuple[int, int], k: int, dtype, seed: int, scale: float):
    """Return the factors to start from: those given, or Gaussian ones from NumPy by seed."""
    if start is not None:
        start = check_factors(name, start)
        found = start.users.shape, start.items.shape
        if found != ((shape[0], k), (shape[1], k)):
            raise ValueError(
                f"{name}: `start` must have factors of shapes {(shape[0], k)} and {(shape[1], k)}, "
                f"got {found[0]} and {found[1]}"
            )
        return start
    seed = _checks.static_int(name, "seed", seed, 0, 2**31 - 1)
    rng = np.random.default_rng(seed)
    p, q = (jnp.asarray(scale * rng.standard_normal((rows, k)), dtype) for rows in shape)
    a, b = (jnp.zeros((rows,), dtype) for rows in shape)
    return Factors(p, q, a, b, jnp.zeros((), dtype))


@jax.jit
def _predict(state: Factors, users: jax.Array, items: jax.Array) -> jax.Array:
    def known(index, count):
        return jnp.where((index >= 0) & (index < count), index, count).reshape(-1)

    def bias(x, index):
        return x.at[index].get(mode="fill", fill_value=0)

    u, i = known(users, state.users.shape[0]), known(items, state.items.shape[0])
    found = bias(state.user_bias, u) + bias(state.item_bias, i)
    return (state.mean + found + sampled(state.users, state.items, u, i)).reshape(users.shape)


def predict(
    state: Factors, users: Any, items: Any, *, bounds: tuple[float, float] | None = None
) -> jax.Array:
    """Return predicted ratings: mean + b_u + b_i + p_u . q_i.

    An unseen user or item contributes nothing: what is left is the mean and the other's bias. It
    is unseen if it had no ratings or its index is none of the state's (-1, say). Differentiable.

    Cost: k multiplications and additions each.

    Args:
        state: Factors.
        users: integers, any shape.
        items: integers of the same shape.
        bounds: (lowest, highest) rating to clip to.

    Returns:
        Array of that shape.

    Raises:
        TypeError: an index is no integer; ``state`` is no Factors.
        ValueError: shapes differ.

    Example:
        >>> import numpy as np
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 0, 1, 1], [0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0])
        >>> state = recommender.als(data, 1, regularization=1e-4)
        >>> index = np.array([0, 1, -1])
        >>> print(np.round(recommender.predict(state, index, index), 1))
        [1.  4.  2.5]
    """
    name = "recommender.predict"
    state = check_factors(name, state)
    u, i = integers(name, "users", users), integers(name, "items", items)
    if u.shape != i.shape:
        raise ValueError(
            f"{name}: `users` and `items` must have one shape, got {u.shape} and {i.shape}"
        )

    found = _predict(state, u, i)
    return found if bounds is None else jnp.clip(found, *bounds)


@functools.partial(jax.jit, static_argnames=("n",))
def _top(state: Factors, users, seen_users, seen_items, n: int):
    """Return the n best items (b, n) of some users and their scores; -1 where there are no more."""
    count, b = state.items.shape[0], users.shape[0]
    product = jnp.matmul(state.users[users], state.items.T, precision=lax.Precision.HIGHEST)
    scores = state.mean + state.user_bias[users][:, None] + state.item_bias[None, :] + product
    # A user may be asked for twice, so each of the b rows looks for its own.
    order = jnp.argsort(users)
    ranks = jnp.searchsorted(users[order], seen_users)
    hit = users[order][jnp.minimum(ranks, b - 1)] == seen_users
    row = jnp.where(hit, jnp.minimum(ranks, b - 1), b)
    first = jnp.searchsorted(users[order], users)  # the row that holds what this user has seen
    seen = jnp.zeros((b, count), bool).at[row, seen_items].set(True, mode="drop")
    scores = jnp.where(seen[first], -jnp.inf, scores)
    best, items = lax.top_k(scores, n)
    return jnp.where(best > -jnp.inf, items, -1), best


def recommend(
    state: Factors, user: Any, n: int = 10, exclude_seen: Ratings | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return the n items with the highest predicted ratings, best first, and these ratings.

    Cost: k multiplications and additions for each item and user asked for.

    Args:
        state: Factors.
        user: index of a user, or of several (b,).
        n: static; length of the list, at most the number of items.
        exclude_seen: Ratings whose items are left out for their users.

    Returns:
        (items, ratings) of shape (n,), or (b, n) for several users; where fewer than n items are
        left, items are -1 and ratings -inf.

    Raises:
        TypeError: ``user`` is no integer, ``state`` no Factors.
        ValueError: ``n`` or ``user`` out of range (fold new users in with `fold_in`).

    Example:
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 0, 1, 1, 1], [0, 1, 0, 1, 2], [1.0, 2.0, 3.0, 4.0, 5.0])
        >>> state = recommender.als(data, 1)
        >>> items, scores = recommender.recommend(state, 0, 1, exclude_seen=data)
        >>> print(items)
        [2]
    """
    name = "recommender.recommend"
    state = check_factors(name, state)
    count = state.items.shape[0]
    n = _checks.static_int(name, "n", n, 1, count)
    users = np.asarray(integers(name, "user", user))
    if users.ndim > 1 or users.size == 0:
        raise ValueError(f"{name}: `user` must be an index or have shape (b,), got {users.shape}")
    total = state.users.shape[0]
    if users.min() < 0 or users.max() >= total:
        worst = users.min() if users.min() < 0 else users.max()
        raise ValueError(f"{name}: `user` must satisfy 0 <= user < {total}, got {worst}")
    none = np.zeros((0,), np.int32)
    seen = (none, none) if exclude_seen is None else (exclude_seen.users, exclude_seen.items)
    if exclude_seen is not None:
        mine = np.isin(seen[0], users)
        seen = seen[0][mine], seen[1][mine]
    items, scores = _top(state, jnp.atleast_1d(users.astype(np.int32)), *_padded(seen, total), n=n)
    return (items[0], scores[0]) if users.ndim == 0 else (items, scores)


def _padded(seen, outside: int):
    """Return pairs padded to a power of two, so that a program serves many users."""
    length = 1 << max(seen[0].size - 1, 0).bit_length()
    fill = length - seen[0].size
    return np.pad(seen[0], (0, fill), constant_values=outside), np.pad(seen[1], (0, fill))


def ranking(
    state: Factors, train: Ratings, test: Ratings, n: int = 10, *, relevant: float = 0.0
) -> Ranking:
    """Return precision, recall and NDCG of top-n lists against held-out ratings.

    Items rated in ``train`` are left out of the lists; in ``test`` an item is relevant if rated
    at least ``relevant``. Users without a relevant item do not count.

    Cost: all scores of 256 users at a time.

    Args:
        state: Factors.
        train: Ratings that the state was fitted to.
        test: Ratings that were held out.
        n: static; length of the lists.
        relevant: least rating of a relevant item.

    Returns:
        Ranking; NaN if no user has a relevant item.

    Raises:
        TypeError: ``state`` is no Factors.
        ValueError: ``n`` out of range.

    Example:
        >>> import numpy as np
        >>> from jaxsvd.models import recommender
        >>> train = recommender.ratings([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [1, 5, 1, 5, 1], (3, 2))
        >>> test = recommender.ratings([2], [1], [5], (3, 2))
        >>> state = recommender.als(train, 1)
        >>> recommender.ranking(state, train, test, 1, relevant=4).recall
        1.0

    References:
        Järvelin and Kekäläinen (2002), ACM TOIS 20 (discounted cumulative gain).
    """
    wanted = test.select(test.values >= relevant)
    users = np.unique(wanted.users)
    if users.size == 0:
        return Ranking(float("nan"), float("nan"), float("nan"), 0)
    gains = 1 / np.log2(np.arange(2, n + 2))
    hits, items = [], state.items.shape[0]
    pairs = np.sort(wanted.users.astype(np.int64) * items + wanted.items)
    for at in range(0, users.size, USERS_AT_ONCE):
        some = users[at : at + USERS_AT_ONCE]
        padded = np.pad(some, (0, -some.size % min(USERS_AT_ONCE, users.size)), mode="edge")
        listed = np.asarray(recommend(state, padded, n, train)[0])[: some.size].astype(np.int64)
        keys = np.where(listed >= 0, some[:, None].astype(np.int64) * items + listed, -1)
        hits.append(np.isin(keys, pairs))
    hit = np.concatenate(hits)
    count = np.bincount(wanted.users, minlength=users[-1] + 1)[users]
    best = np.cumsum(gains)[np.minimum(count, n) - 1]
    return Ranking(
        float(np.mean(hit.sum(1) / n)),
        float(np.mean(hit.sum(1) / count)),
        float(np.mean(hit @ gains / best)),
        int(users.size),
    )


def save(path: str | os.PathLike, state: Factors) -> None:
    """Write a state as .npz; the file appears whole or not at all.

    Args:
        path: of the file.
        state: Factors.

    Raises:
        TypeError: ``state`` is no Factors.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsvd.models import recommender
        >>> state = recommender.als(recommender.ratings([0, 1], [0, 1], [1.0, 2.0]), 1)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "state.npz")
        >>> recommender.save(path, state)
        >>> bool((recommender.restore(path).users == state.users).all())
        True
    """
    save_arrays(path, check_factors("recommender.save", state)._asdict())


def restore(path: str | os.PathLike) -> Factors:
    """Return a state from the file that `save` wrote (float64 needs x64 on to stay so).

    Args:
        path: of the file.

    Returns:
        Factors.

    Raises:
        ValueError: the file holds something else, or is damaged.
    """
    return Factors(**jax.tree.map(jnp.asarray, load_arrays(path, Factors._fields)))
