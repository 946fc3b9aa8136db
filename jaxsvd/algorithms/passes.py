"""Runs the algorithm of `outofcore`: blocks read ahead, pass after pass."""

import contextlib
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import SVDResult
from ..operators.base import Operator
from ..operators.rowblocks import RowBlocks, by_rows, concrete, held_by, transposed, with_rows
from . import drive, outofcore
from .outofcore import DONE, Config, Found, State, finish, init, take_in, turn
from .products import adjoint


class Stepper:
    """Steps of one block of rows each, the blocks being read ahead."""

    def __init__(self, A: Operator, config: Config):
        self.A, self.config = A, config
        self.held = by_rows(A)
        self.blocks: Any = None
        self.at = -1

    def __call__(self, state: State) -> State:
        """Return the state after the next block of rows, and after the pass if it is the last."""
        m, row = self.A.shape[0], int(state.row)
        if self.held is None:
            return turn(take_in(self.A, state, m), self.config)
        if self.blocks is None or self.at != row:
            self.close()
            self.blocks, self.at = self.held.blocks(row), row
        block = next(self.blocks)
        state = take_in(self.A, state, len(block), with_rows(self.A, block))
        self.at += len(block)
        if self.at < m:
            return state
        next(self.blocks, None)  # the source ends here, and is what it was
        self.close()
        return turn(state, self.config)

    def close(self) -> None:
        """Stop reading."""
        if self.blocks is not None:
            self.blocks.close()
        self.blocks, self.at = None, -1


def _label(A: Operator, held: RowBlocks, config: Config, key: jax.Array, start: Any) -> str:
    """Return what tells one computation from another."""
    numbers = [x for x in jax.tree.leaves(A) if hasattr(x, "dtype")]
    numbers += [jax.random.key_data(key), *([] if start is None else [start])]
    digest = 0
    for x in numbers:
        digest = zlib.crc32(np.ascontiguousarray(x).tobytes(), digest)
    source = held.source
    return f"{A!r} of {source.label} {source.first_stamp}, {held.rows} rows, {config}, {digest:x}"


def run(
    A: Operator, choose: Callable[[int, int], Config], key: jax.Array, start: Any = None
) -> Found:
    """Return the triplets of an operator that holds a matrix outside memory.

    Args:
        A: the operator, (m, n).
        choose: (m, n) -> the sizes.
        key: of the start block.
        start: right vectors to start from, (n, any number).

    Returns:
        Found.
    """
    concrete("the decomposition", A, key, start)
    A, swap, conjugate = transposed(A)
    if start is not None:
        start = jnp.conj(start) if conjugate else start
        start = A.rmatmat(start) if swap else start
    held = held_by(A)
    assert held is not None  # the caller made sure
    config = choose(*A.shape)
    label = _label(A, held, config, key, start)
    stepper = Stepper(A, config)
    with (
        drive.progress_bar(held.progress, A.shape[0]) as move,
        contextlib.closing(stepper),
    ):

        def show(state: State) -> None:
            largest, worst = float(state.S[0]), float(np.max(state.residuals[: config.k]))
            known = largest > 0 and np.isfinite(worst)
            note = f", residual {worst / largest:.1e}" if known else ""
            move(int(state.passes) + 1, int(state.row), note)

        state = drive.run_on_host(
            init(A, config, key, start),
            lambda state: int(state.phase) != DONE,
            stepper,
            label=label,
            checkpoint=held.checkpoint,
            show=show if held.progress else lambda state: None,
        )
    found = finish(state, config)
    U, S, Vh = found.ritz
    if swap:
        U, Vh = adjoint(Vh), adjoint(U)
    if conjugate:
        U, Vh = jnp.conj(U), jnp.conj(Vh)
    return found._replace(ritz=SVDResult(U, S, Vh))


def truncated(
    A: Operator, k: int, tol: float, max_passes: int | None, key: jax.Array, start: Any
) -> Found:
    """Return the k leading triplets, to the tolerance."""
    return run(A, lambda m, n: outofcore.choose(m, n, k, tol, max_passes), key, start)


@jax.jit
def _norm(a: jax.Array) -> jax.Array:
    largest = jnp.max(jnp.abs(a), initial=0)
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.linalg.norm((a / unit.astype(a.dtype)).ravel())


def frobenius_norm(A: RowBlocks) -> float:
    """Return |A|_F, in one pass."""
    concrete("the norm")
    with contextlib.closing(A.blocks()) as blocks:
        return math.hypot(*(float(_norm(jax.device_put(block))) for block in blocks))
