"""Ratings by user and item: making, reading and splitting them, and errors of predictions."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import _checks
from .._files import read_ratings


class Ratings(NamedTuple):
    """Ratings, one per user and item, in NumPy: they are sorted and grouped before any program.

    Attributes:
        users: row of each, (p,), int32.
        items: column of each, (p,), int32.
        values: rating of each, (p,), float32 or float64.
        shape: (users, items), of which some may have no ratings.
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    def select(self, which: Any) -> "Ratings":
        """Return some of the ratings, by index or mask; the shape stays."""
        return self._replace(
            users=self.users[which], items=self.items[which], values=self.values[which]
        )


def _index(name: str, argument: str, x: Any) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 1 or not (np.issubdtype(x.dtype, np.integer) or x.size == 0):
        raise TypeError(
            f"{name}: `{argument}` must be integers of shape (p,), got {_checks.describe(x)}"
        )
    if x.size and x.min() < 0:
        raise ValueError(
            f"{name}: `{argument}` must be >= 0, got {x.min()} in row {int(np.argmin(x))}"
        )
    return x


def ratings(users: Any, items: Any, values: Any, shape: tuple[int, int] | None = None) -> Ratings:
    """Return checked ratings; of those that one user gave one item, the last counts.

    Args:
        users: integers (p,).
        items: integers (p,).
        values: numbers (p,); float64 stays float64 where x64 is on, all else becomes float32.
        shape: (users, items); default the largest index plus one. Users and items without ratings
            are fine.

    Returns:
        Ratings, in the order given, without the earlier duplicates.

    Raises:
        TypeError: an index is no integer, a value no real number.
        ValueError: lengths differ, an index is out of range, a rating is NaN or infinite (the
            message names the row), or there is none.

    Example:
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 1, 0], [2, 0, 2], [3.0, 5.0, 4.0])
        >>> print(data.users, data.items, data.values, data.shape)
        [1 0] [0 2] [5. 4.] (2, 3)
    """
    name = "recommender.ratings"
    u, i = _index(name, "users", users), _index(name, "items", items)
    v = np.asarray(values)
    if v.dtype == np.bool_ or not (
        np.issubdtype(v.dtype, np.floating) or np.issubdtype(v.dtype, np.integer)
    ):
        raise TypeError(f"{name}: `values` must be real numbers, got {_checks.describe(v)}")
    if not u.shape == i.shape == v.shape:
        raise ValueError(
            f"{name}: `users`, `items` and `values` must have one shape (p,), got {u.shape}, "
            f"{i.shape} and {v.shape}"
        )
    if u.size == 0:
        raise ValueError(f"{name}: `values` must hold at least one rating, got none")
    bad = np.flatnonzero(~np.isfinite(v))
    if bad.size:
        raise ValueError(f"{name}: `values` must be finite, got {v[bad[0]]} in row {bad[0]}")
    if shape is None:
        shape = int(u.max()) + 1, int(i.max()) + 1
    shape = int(shape[0]), int(shape[1])
    for argument, index, count in (("users", u, shape[0]), ("items", i, shape[1])):
        if index.max() >= count:
            raise ValueError(
                f"{name}: `{argument}` must be < {count}, got {index.max()} in row "
                f"{int(np.argmax(index))}"
            )
    place = u.astype(np.int64) * shape[1] + i
    _, last = np.unique(place[::-1], return_index=True)  # the first of the reversed
    keep = np.sort(u.size - 1 - last)
    dtype = (
        jax.dtypes.canonicalize_dtype(v.dtype) if v.dtype == np.float64 else np.dtype(np.float32)
    )
    return Ratings(u[keep].astype(np.int32), i[keep].astype(np.int32), v[keep].astype(dtype), shape)


class Names(NamedTuple):
    """The names behind the indices of a file.

    Attributes:
        users: name of each user as in the file, sorted (as numbers if all are), (users,).
        items: name of each item, (items,).
    """

    users: np.ndarray
    items: np.ndarray


def _numbered(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    found: Any = np.array(names)
    if all(name.isdecimal() and len(name) < 19 for name in set(names)):
        found = found.astype(np.int64)
    return np.unique(found, return_inverse=True)


def load(path: str | os.PathLike) -> tuple[Ratings, Names]:
    r"""Return the ratings of a file in a MovieLens format, and the names of users and items.

    A line is ``user item rating`` or ``user item rating timestamp``, separated by tabs (100k),
    "::" (1M), commas with or without a header (20M), semicolons or spaces. Of duplicates the last
    by timestamp counts, and of equal timestamps the last in the file.

    Args:
        path: of the text file.

    Returns:
        (Ratings with indices from 0, ordered by time, Names).

    Raises:
        ValueError: a line cannot be read; the message names file and line.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxsvd.models import recommender
        >>> path = pathlib.Path(tempfile.mkdtemp(), "u.data")
        >>> _ = path.write_text("196\t242\t3\t881250949\n22\t242\t1\t878887116\n")
        >>> data, names = recommender.load(path)
        >>> print(data.values, names.users, names.items)
        [1. 3.] [ 22 196] [242]
    """
    users, items, values, times = read_ratings(path)
    order = np.argsort(times, kind="stable")
    (user_names, u), (item_names, i) = _numbered(users), _numbered(items)
    shape = (len(user_names), len(item_names))
    data = ratings(u[order], i[order], values[order].astype(np.float32), shape)
    return data, Names(user_names, item_names)


def split(data: Ratings, fraction: float = 0.2, *, seed: int = 0) -> tuple[Ratings, Ratings]:
    """Return (train, test), the test set a random fraction of the ratings; shapes stay.

    Args:
        data: Ratings.
        fraction: 0 < fraction < 1.
        seed: of the shuffle.

    Returns:
        Two Ratings that share no rating.

    Raises:
        ValueError: ``fraction`` out of range.

    Example:
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 1, 2, 3], [0, 1, 0, 1], [1, 2, 3, 4])
        >>> train, test = recommender.split(data, 0.25)
        >>> print(len(train.values), len(test.values))
        3 1
    """
    if not 0 < fraction < 1:
        raise ValueError(f"recommender.split: `fraction` must be in (0, 1), got {fraction}")
    order = np.random.default_rng(seed).permutation(data.values.size)
    count = round(fraction * order.size)
    return data.select(np.sort(order[count:])), data.select(np.sort(order[:count]))


def folds(data: Ratings, count: int = 5, *, seed: int = 0) -> Iterator[tuple[Ratings, Ratings]]:
    """Yield (train, test) for k-fold cross-validation: each rating is tested once.

    Args:
        data: Ratings.
        count: folds, 2 <= count <= ratings.
        seed: of the shuffle.

    Yields:
        Pairs of Ratings.

    Raises:
        ValueError: ``count`` out of range.

    Example:
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 1, 2, 3], [0, 1, 0, 1], [1, 2, 3, 4])
        >>> print([len(test.values) for train, test in recommender.folds(data, 2)])
        [2, 2]
    """
    total = data.values.size
    count = _checks.static_int("recommender.folds", "count", count, 2, max(total, 2))
    parts = np.array_split(np.random.default_rng(seed).permutation(total), count)
    for part in parts:
        tested = np.zeros(total, bool)
        tested[part] = True
        yield data.select(~tested), data.select(tested)


def rmse(predicted: Any, values: Any) -> float:
    """Return the root of the mean squared difference.

    Example:
        >>> from jaxsvd.models import recommender
        >>> recommender.rmse([1.0, 2.0], [1.0, 4.0])
        1.414...
    """
    difference = np.asarray(predicted, np.float64) - np.asarray(values, np.float64)
    return float(np.sqrt(np.mean(difference**2)))


def mae(predicted: Any, values: Any) -> float:
    """Return the mean absolute difference.

    Example:
        >>> from jaxsvd.models import recommender
        >>> recommender.mae([1.0, 2.0], [1.0, 4.0])
        1.0
    """
    difference = np.asarray(predicted, np.float64) - np.asarray(values, np.float64)
    return float(np.mean(np.abs(difference)))
