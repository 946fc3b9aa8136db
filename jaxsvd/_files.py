"""Reading and writing files: ratings as text, arrays and checkpoints that appear whole or not."""

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# How the fields of a line may be separated, the first that occurs: MovieLens 100k has tabs, 1M two
# colons, 20M commas.
SEPARATORS = ("::", "\t", ",", ";", None)


def _fields(line: str) -> list[str]:
    separator = next((s for s in SEPARATORS if s is None or s in line), None)
    return [field.strip() for field in line.split(separator)]


def _lines(path: str | os.PathLike) -> Iterator[str]:
    with open(path, encoding="utf-8-sig") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: wanted text in UTF-8, got {error}") from None


# Ratings are kept in single precision.
LARGEST = float(np.finfo(np.float32).max)


def read_ratings(path: str | os.PathLike) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Return user names, item names, ratings (p,) and timestamps (p,) of a text file.

    A line is ``user item rating`` or ``user item rating timestamp``, separated by tabs, spaces,
    commas, semicolons or "::". A first line whose third field begins with a letter is a header;
    empty lines do not count; a timestamp that is missing is 0.

    Raises:
        ValueError: a line has too few or too many fields, or a rating or timestamp that is not a
            finite number (a rating in single precision); the message names file, line and content.
            Or the file is no text in UTF-8.
    """
    users, items, values, times = [], [], [], []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        fields = _fields(line)
        try:
            if not 3 <= len(fields) <= 4 or not all(fields[:3]):
                raise ValueError
            if number == 1 and fields[2][:1].isalpha() and fields[2].lower() != "nan":
                continue
            value, time = float(fields[2]), float(fields[3]) if len(fields) == 4 else 0.0
            if not (abs(value) <= LARGEST and np.isfinite(time)):
                raise ValueError
        except ValueError:
            text = line.strip()
            raise ValueError(
                f"{path}, line {number}: wanted `user item rating` or `user item rating "
                f"timestamp` with finite numbers of single precision, got {text[:60]!r}"
            ) from None
        users.append(fields[0])
        items.append(fields[1])
        values.append(value)
        times.append(time)
    if not values:
        raise ValueError(f"{path}: wanted at least one line `user item rating`, got none")
    return users, items, np.array(values), np.array(times)


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a file to write that takes the place of ``path`` at the end, or vanishes.

    A reader finds the old file or the new one, never a part; a process that is killed leaves the
    old one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}.part")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = temporary.stat().st_mode  # as the umask wants it; what writes may replace the file
    try:
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name as .npz: a reader finds the old file or the new one, never a part."""
    # numpy.savez takes names as keywords, and "file" is one of its own.
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, x in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(x), allow_pickle=False)


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file by name; nothing is unpickled.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no .npz, is damaged, or holds something else than arrays.
    """
    with open(path, "rb") as handle:
        try:
            with np.load(handle, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            others = [name for name, x in found.items() if not isinstance(x, np.ndarray)]
            if others:
                raise ValueError(f"one that holds {others[0]!r}, which is no array")
        except Exception as error:  # what a damaged archive raises is of many kinds
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: wanted an .npz file of arrays, got {reason}") from None
    return found


def load_arrays(path: str | os.PathLike, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return the named arrays of a .npz file.

    Raises:
        ValueError: the file holds other arrays, or is no .npz.
    """
    found = read_npz(path)
    if set(found) != set(names):
        raise ValueError(f"{path}: wanted the arrays {sorted(names)}, got {sorted(found)}")
    return found


# ------------------------------------------------------------------------------- checkpoints

SUFFIXES = (".safetensors", ".npz")

# Where .npz keeps what the header of safetensors holds: JSON, as bytes.
METADATA = "__metadata__"

# Names of safetensors by those of NumPy and ml_dtypes. Its dtypes of 4 and 6 bits are no arrays.
_DTYPES = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{word}int{bits}" for bits in (8, 16, 32, 64)
       for kind, word in (("I", ""), ("U", "u"))},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "C64": "complex64",
}  # fmt: skip


class Checkpoint(NamedTuple):
    """The arrays of a file by name, and its metadata, strings by name."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def suffix_of(path: str | os.PathLike) -> str:
    """Return the suffix of a checkpoint's name, or raise."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: wanted a file named {' or '.join(SUFFIXES)}, got {suffix!r}")
    return suffix


def _safetensors(path: str | os.PathLike) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            f'{path}: needs safetensors; run pip install "jaxsvd[io]" to install it'
        ) from error
    return safetensors


def _read_safetensors(path: str | os.PathLike) -> Checkpoint:
    package = _safetensors(path)
    try:
        with package.safe_open(path, "np"):  # checks the header and that the file is whole
            pass
    except package.SafetensorError as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{path}: wanted a whole .safetensors file, got {reason}") from None
    # The package's own reader has no float8. The bytes stay on disk until they are looked at.
    data = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path}: leaf {name!r} must be of one of the dtypes {', '.join(_DTYPES)}, got "
                f"{entry['dtype']}"
            )
        first, last = entry["data_offsets"]
        dtype = jnp.dtype(_DTYPES[entry["dtype"]])
        arrays[name] = data[start + first : start + last].view(dtype).reshape(entry["shape"])
    return Checkpoint(arrays, metadata)


def _read_npz_checkpoint(path: str | os.PathLike) -> Checkpoint:
    arrays = read_npz(path)
    raw = arrays.pop(METADATA, None)
    try:
        metadata = {} if raw is None else dict(json.loads(raw.tobytes()))
        dtypes = dict(json.loads(metadata.pop("dtypes", "{}")))
        if not all(isinstance(value, str) for value in (*metadata.values(), *dtypes.values())):
            raise TypeError("something else than text")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {METADATA} must hold JSON of texts, got {error}") from None
    for name, x in arrays.items():
        if x.dtype.kind == "V" and x.dtype.names is None:
            dtype = dtypes.get(name, "bfloat16" if x.dtype.itemsize == 2 else None)
            if dtype is None:
                raise ValueError(
                    f"{path}: leaf {name!r} must be of a dtype that .npz can name, got bytes of "
                    f"size {x.dtype.itemsize}; .safetensors names all of them"
                )
            if dtype not in _DTYPES.values() or jnp.dtype(dtype).itemsize != x.dtype.itemsize:
                raise ValueError(
                    f"{path}: leaf {name!r} must be bytes of its dtype, got {dtype} for bytes of "
                    f"size {x.dtype.itemsize}"
                )
            arrays[name] = x.view(jnp.dtype(dtype))
        elif x.dtype.kind not in "biufc":
            raise ValueError(f"{path}: leaf {name!r} must hold numbers, got dtype {x.dtype}")
    return Checkpoint(arrays, metadata)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Return the arrays of a .safetensors or .npz file; nothing is ever unpickled.

    bfloat16 and float8 keep their dtypes; of an .npz of another writer, which cannot name them,
    two unnamed bytes are a bfloat16. Arrays of safetensors are read when they are looked at.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.
        ValueError: another suffix, a file that is damaged or not whole, a dtype that is unknown.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return (_read_safetensors if suffix_of(path) == ".safetensors" else _read_npz_checkpoint)(path)


def write_checkpoint(
    path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write arrays by name and metadata as .safetensors or .npz, whole or not at all.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.
        ValueError: another suffix, a dtype that the format has not.
    """
    arrays = {name: np.ascontiguousarray(x).reshape(np.shape(x)) for name, x in arrays.items()}
    if suffix_of(path) == ".safetensors":
        package = _safetensors(path)
        from safetensors.numpy import save_file

        for name, x in arrays.items():
            if x.dtype.name not in _DTYPES.values():
                raise ValueError(
                    f"{path}: leaf {name!r} must be of a dtype of safetensors, got {x.dtype}"
                )
        with atomic(path) as temporary:
            try:
                save_file(arrays, temporary, dict(metadata) or None)
            except package.SafetensorError as error:
                raise OSError(None, str(error), str(path)) from None
        return
    # Those of ml_dtypes are bytes to the format, which cannot even read all that it writes of them.
    dtypes = {name: x.dtype.name for name, x in arrays.items() if x.dtype.isbuiltin == 2}
    arrays |= {name: arrays[name].view(f"V{arrays[name].itemsize}") for name in dtypes}
    kept = dict(metadata) | ({"dtypes": json.dumps(dtypes)} if dtypes else {})
    text = {METADATA: np.frombuffer(json.dumps(kept).encode(), np.uint8)} if kept else {}
    save_arrays(path, arrays | text)
