"""A hook on every raw triplet that `svd` returns, for `diagnose`.

Nothing is installed in ordinary use: `observe` returns its argument. The hook is a context that
`jax.jit` keeps in its cache keys, so that a function compiled before is traced anew under it.
"""

from collections.abc import Callable

import jax

from .._types import SVDResult

Observer = Callable[[SVDResult], SVDResult]

# `with observing(observer): ...` lets an observer see, and replace, what `svd` returns.
observing = jax.make_user_context(default_value=None)


def observe(result: SVDResult) -> SVDResult:
    """Pass a result through the observer in force, if any."""
    observer: Observer | None = observing.value
    return result if observer is None else observer(result)
