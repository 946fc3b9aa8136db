"""What `report` and `compress` share: reading a file, which leaves are matrices, a progress bar."""

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from .. import _files, _leaves


class Refused(ValueError):
    """The command makes no sense; the message is the sentence for the user."""


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn what the library and the system raise into `Refused`: their messages are sentences."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Refused(f"{where}{(error.strerror or str(error)).lower()}") from error
    except MemoryError as error:
        raise Refused("not enough memory for this model") from error
    except (ValueError, TypeError) as error:
        raise Refused(" ".join(str(error).split())) from error


def axes_of(text: str | None) -> _leaves.Axes:
    """Return the axes of rows and columns that ``--axes ROWS:COLUMNS`` names, such as 0,1,2:3."""
    if text is None:
        return None
    try:
        rows, columns = (tuple(map(int, part.split(","))) for part in text.split(":"))
    except ValueError:
        raise Refused(f"--axes must be such as 0,1,2:3 or -2:-1, got {text!r}") from None
    return rows, columns


def where_of(
    text: str | None, leaves: Mapping[str, Any], axes: _leaves.Axes
) -> Callable[[str, Any], bool] | None:
    """Return the predicate of ``--where REGEX``: of the matrices those whose name it is found in.

    Raises:
        Refused: it is no regular expression, or found in none.
    """
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise Refused(f"--where must be a regular expression, got {text!r} ({error})") from None

    def is_matrix(leaf: Any) -> bool:
        is_number = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return is_number and (leaf.ndim == 2 or (leaf.ndim > 2 and axes is not None))

    matrices = [(name, leaf) for name, leaf in leaves.items() if is_matrix(leaf)]
    if not any(pattern.search(name) for name, _ in matrices):
        raise Refused(
            f"--where must be found in the name of a matrix, got {text!r}; they are "
            f"{_leaves.listed(matrices)}"
        )
    return lambda name, leaf: pattern.search(name) is not None and is_matrix(leaf)


def needs_x64(leaves: dict[str, Any]) -> bool:
    """Return whether a leaf holds double precision."""
    return any(
        jnp.issubdtype(x.dtype, jnp.inexact) and jnp.finfo(x.dtype).bits == 64
        for x in leaves.values()
        if hasattr(x, "dtype")
    )


def size(path: Path) -> str:
    """Return the size of a file in words."""
    count = path.stat().st_size
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (name, done, total) that moves a bar on stderr, if that is a terminal.

    Needs tqdm; without it there is no bar.
    """
    if not importlib.util.find_spec("tqdm") or not sys.stderr.isatty():
        yield lambda name, done, total: None
        return
    from tqdm import tqdm

    bar = tqdm(desc=what, unit=" leaves", leave=False)

    def move(name: str, done: int, total: int) -> None:
        bar.total = total
        bar.set_postfix_str(name, refresh=False)
        bar.update(done - bar.n)

    try:
        yield move
    finally:
        bar.close()


def read(path: Path) -> _files.Checkpoint:
    """Return the arrays of a file and its metadata, or refuse."""
    if path.is_dir():
        raise Refused(f"{path}: wanted a .safetensors or .npz file, got a folder")
    found = _files.read_checkpoint(path)
    if not found.arrays:
        raise Refused(f"{path}: wanted a checkpoint, got a file without arrays")
    return found
