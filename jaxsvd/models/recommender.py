"""Recommenders from sparse ratings: biased matrix factorization by SGD, and ALS.

`ratings` or `load` make the data, `sgd`, `als` and `implicit_als` fit `Factors`, and `predict`,
`recommend`, `fold_in`, `ranking` and `cross_validate` use them. The same data, settings and seed
give the same bits.

Example:
    >>> import numpy as np
    >>> from jaxsvd.models import recommender
    >>> rng = np.random.default_rng(0)
    >>> users, items = np.divmod(rng.permutation(40 * 30)[:800], 30)
    >>> values = 3 + rng.normal(size=40)[users] + 0.5 * rng.normal(size=30)[items]
    >>> train, test = recommender.split(recommender.ratings(users, items, values))
    >>> state = recommender.als(train, 2, regularization=0.1)
    >>> recommender.rmse(recommender.predict(state, test.users, test.items), test.values) < 0.1
    True
"""

from collections.abc import Callable

import numpy as np

from .. import _checks
from .als import als as als
from .als import fold_in as fold_in
from .als import implicit_als as implicit_als
from .factors import Factors as Factors
from .factors import Ranking as Ranking
from .factors import predict as predict
from .factors import ranking as ranking
from .factors import recommend as recommend
from .factors import restore as restore
from .factors import save as save
from .ratings import Names as Names
from .ratings import Ratings as Ratings
from .ratings import folds as folds
from .ratings import load as load
from .ratings import mae as mae
from .ratings import ratings as ratings
from .ratings import rmse as rmse
from .ratings import split as split
from .sgd import sgd as sgd


def cross_validate(
    fit: Callable[[Ratings], Factors], data: Ratings, count: int = 5, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return errors on held-out ratings by k-fold cross-validation.

    Cost: ``count`` fits.

    Args:
        fit: Ratings -> Factors.
        data: Ratings.
        count: folds.
        seed: of the shuffle.

    Returns:
        {"rmse": (count,), "mae": (count,)}.

    Raises:
        TypeError: ``fit`` is no function.
        ValueError: ``count`` out of range.

    Example:
        >>> from jaxsvd.models import recommender
        >>> data = recommender.ratings([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [1, 2, 1, 2, 1, 2])
        >>> errors = recommender.cross_validate(lambda train: recommender.als(train, 1), data, 3)
        >>> print(errors["rmse"].shape, bool(errors["rmse"].mean() < 0.5))
        (3,) True
    """
    name = "recommender.cross_validate"
    fit = _checks.function(name, "fit", fit)
    found = {"rmse": [], "mae": []}
    for train, test in folds(data, count, seed=seed):
        predicted = predict(fit(train), test.users, test.items)
        found["rmse"].append(rmse(predicted, test.values))
        found["mae"].append(mae(predicted, test.values))
    return {measure: np.array(errors) for measure, errors in found.items()}
