"""The one loop that runs an iterative algorithm: step while it is running."""

from collections.abc import Callable
from typing import TypeVar

from jax import lax

State = TypeVar("State")


def run(state: State, running: Callable[[State], object], step: Callable[[State], State]) -> State:
    """Return the state after the last step, in one compiled loop.

    Under `vmap` it runs until the slowest lane is done; lanes that are done keep their state.
    """
    return lax.while_loop(running, step, state)
