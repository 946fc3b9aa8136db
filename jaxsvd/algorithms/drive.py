"""The loops that run an iterative algorithm: step while it is running.

`run` is one compiled loop. `run_on_host` is a Python loop of compiled steps, for matrices that a
program cannot hold: it saves the state, takes a run up again, and shows how far it is.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax

from .. import _files

State = TypeVar("State")

# Seconds between two saves of a running state.
SAVE_EVERY = 60.0


def run(state: State, running: Callable[[State], object], step: Callable[[State], State]) -> State:
    """Return the state after the last step, in one compiled loop.

    Under `vmap` it runs until the slowest lane is done; lanes that are done keep their state.
    """
    return lax.while_loop(running, step, state)


def run_on_host(
    state: State,
    running: Callable[[State], bool],
    step: Callable[[State], State],
    *,
    label: str = "",
    checkpoint: str | os.PathLike | None = None,
    show: Callable[[State], None] = lambda state: None,
) -> State:
    """Return the state after the last step, in a Python loop.

    Args:
        state: a pytree, the same after each step.
        running: whether another step is wanted.
        step: state -> state.
        label: says which computation it is; another one's checkpoint is refused.
        checkpoint: path of a file that holds the state of a run that was stopped, or will.
        show: told of each state.

    Returns:
        The last state.

    Raises:
        ValueError: the checkpoint is of another computation.
    """
    if checkpoint is None:
        while running(state):
            state = step(state)
            show(state)
        return state
    if os.path.exists(checkpoint):
        state = load(checkpoint, state, label)
    saved = time.monotonic()
    try:
        while running(state):
            state = step(state)
            show(state)
            if time.monotonic() - saved > SAVE_EVERY:
                save(checkpoint, state, label)
                saved = time.monotonic()
    except BaseException:  # a key press too
        save(checkpoint, state, label)
        raise
    with contextlib.suppress(FileNotFoundError):
        os.remove(checkpoint)
    return state


def save(path: str | os.PathLike, state: Any, label: str) -> None:
    """Write the arrays of a pytree to a file, whole or not at all."""
    leaves: dict[str, Any] = {"label": np.array(label)}
    leaves |= {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    _files.save_arrays(path, leaves)


def load(path: str | os.PathLike, like: State, label: str) -> State:
    """Return the pytree of a file that `save` wrote, of the structure of another one."""
    leaves, structure = jax.tree.flatten(like)
    where = f"checkpoint: {os.fspath(path)!r}"
    try:
        arrays = _files.read_npz(path)
        found = str(arrays.pop("label"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{where} must be a file that a stopped run left, got {error}") from None
    if found != label:
        raise ValueError(
            f"{where} must be of the same computation, {label}, got {found}; remove it to start "
            "anew"
        )
    wanted = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}

    def fits(x: np.ndarray, leaf: Any) -> bool:  # shapes may grow; a Python number has no dtype
        return x.ndim == np.ndim(leaf) and x.dtype == getattr(leaf, "dtype", x.dtype)

    if set(arrays) != set(wanted) or not all(fits(arrays[name], wanted[name]) for name in wanted):
        raise ValueError(f"{where} must hold the arrays of this computation; it is damaged")
    return structure.unflatten([arrays[name] for name in wanted])


@contextlib.contextmanager
def progress_bar(wanted: bool, rows: int) -> Iterator[Callable[[int, int, str], None]]:
    """Give a function (pass, rows read of it, note) that moves a bar of tqdm, or does nothing."""
    if not wanted:
        yield lambda number, row, note: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise ImportError(
            'progress=True needs tqdm; run pip install "jaxsvd[io]" to install it'
        ) from None
    with tqdm(total=rows, unit=" rows") as bar:

        def show(number: int, row: int, note: str) -> None:
            bar.set_description(f"pass {number}{note}", refresh=False)
            bar.update(row - bar.n if row >= bar.n else 0)
            if row < bar.n:  # the next pass
                bar.reset(total=rows)
                bar.update(row)

        yield show
