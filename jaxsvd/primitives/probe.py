"""A hook on every raw triplet that `svd` returns, for `gauge_check` and `diagnose`.

Nothing is installed in ordinary use: `observe` returns its argument.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from .._types import SVDResult

_observer: ContextVar[Callable[[SVDResult], SVDResult] | None] = ContextVar(
    "jaxsvd_observer", default=None
)


def observe(result: SVDResult) -> SVDResult:
    """Pass a result through the observer in force, if any."""
    observer = _observer.get()
    return result if observer is None else observer(result)


@contextlib.contextmanager
def observing(observer: Callable[[SVDResult], SVDResult]) -> Iterator[None]:
    """Let ``observer`` see, and replace, what `svd` returns inside the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
