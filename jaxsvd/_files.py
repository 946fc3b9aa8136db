"""Reading and writing files: ratings as text, arrays as .npz that appear whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# How the fields of a line may be separated, the first that occurs: MovieLens 100k has tabs, 1M two
# colons, 20M commas.
SEPARATORS = ("::", "\t", ",", ";", None)


def _fields(line: str) -> list[str]:
    separator = next((s for s in SEPARATORS if s is None or s in line), None)
    return [field.strip() for field in line.split(separator)]


def read_ratings(path: str | os.PathLike) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Return user names, item names, ratings (p,) and timestamps (p,) of a text file.

    A line is ``user item rating`` or ``user item rating timestamp``, separated by tabs, spaces,
    commas, semicolons or "::". A first line whose third field begins with a letter is a header;
    empty lines do not count; a timestamp that is missing is 0.

    Raises:
        ValueError: a line has too few or too many fields, or a rating or timestamp that is not a
            finite number; the message names file, line and content.
    """
    users, items, values, times = [], [], [], []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            fields = _fields(line)
            try:
                if not 3 <= len(fields) <= 4 or not all(fields[:3]):
                    raise ValueError
                if number == 1 and fields[2][:1].isalpha() and fields[2].lower() != "nan":
                    continue
                value, time = float(fields[2]), float(fields[3]) if len(fields) == 4 else 0.0
                if not (np.isfinite(value) and np.isfinite(time)):
                    raise ValueError
            except ValueError:
                text = line.strip()
                raise ValueError(
                    f"{path}, line {number}: wanted `user item rating` or `user item rating "
                    f"timestamp` with finite numbers, got {text[:60]!r}"
                ) from None
            users.append(fields[0])
            items.append(fields[1])
            values.append(value)
            times.append(time)
    if not values:
        raise ValueError(f"{path}: wanted at least one line `user item rating`, got none")
    return users, items, np.array(values), np.array(times)


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as .npz: a reader finds the old file or the new one, never a part."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **{k: np.asarray(x) for k, x in arrays.items()})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_arrays(path: str | os.PathLike, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the named arrays of a .npz file.

    Raises:
        ValueError: the file holds other arrays, or is no .npz.
    """
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile.BadZipFile, and what else a damaged archive raises
        raise ValueError(f"{path}: wanted an .npz file of arrays, got {error}") from None
    if set(found) != set(names):
        raise ValueError(f"{path}: wanted the arrays {sorted(names)}, got {sorted(found)}")
    return found
