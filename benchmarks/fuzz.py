"""Damaged files: what reads files must read them or say in one sentence why not, and no more.

    python -m benchmarks.fuzz [--count N] [--seed S] [--only WORD ...]

Whole files are damaged at random: bits, bytes, pieces cut out, doubled or moved, numbers in text,
two files spliced, and, so that damage gets past checksums and lengths, the parts inside of an .npz
and the header of a .safetensors. Each is then read in this process. What counts as a fault: any
exception but a ValueError, TypeError or OSError of one line that names the file, any warning,
another file opened than the one given, anything unpickled, a call of more than five seconds, output
left half written, input that has changed.
"""

import argparse
import contextlib
import functools
import gc
import io
import os
import sys
import sysconfig
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsvd import _files
from jaxsvd.algorithms import drive
from jaxsvd.cli import main as command
from jaxsvd.compress import load as load_compressed
from jaxsvd.models import recommender
from jaxsvd.operators.sources import as_source, working_dtype

from .trials import Failure, Row

SECONDS = 5.0

# ------------------------------------------------------------------------------------- whole files


class Bomb:
    """An object that says so when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def _ratings(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    lines = [
        f"{rng.integers(20)}|{rng.integers(30)}|{rng.integers(1, 11) / 2}|{881250949 + i}"
        for i in range(25)
    ]
    paths = []
    for name, separator, head in (
        ("u.data", "\t", ""), ("r.dat", "::", ""), ("r.csv", ",", "userId,movieId,rating,time\n"),
        ("r.txt", " ", "\ufeff"),
    ):  # fmt: skip
        path = folder / name
        path.write_text(head + "\n".join(lines).replace("|", separator) + "\n", "utf-8")
        paths.append(path)
    return paths


def _arrays() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "a.w": rng.normal(size=(8, 6)).astype(np.float32),
        "b/w": rng.normal(size=(7, 5)),
        "c": jnp.asarray(rng.normal(size=(6, 4)), jnp.bfloat16),
        "bias": np.arange(5.0, dtype=np.float32),
        "count": np.int32(3),
    }


def _checkpoints(folder: Path, suffix: str) -> list[Path]:
    plain, small = folder / f"plain{suffix}", folder / f"small{suffix}"
    _files.write_checkpoint(plain, _arrays(), {"format": "pt"})
    with contextlib.redirect_stdout(io.StringIO()):
        command(["compress", str(plain), "-o", str(small), "--budget", "0.7", "--force"])
    paths = [plain, small]
    if suffix == ".npz":
        np.savez_compressed(
            folder / "others.npz", **{k: np.asarray(x) for k, x in _arrays().items()}
        )
        np.savez(folder / "objects.npz", w=np.array([Bomb(), None], object), v=np.eye(3))
        paths += [folder / "others.npz", folder / "objects.npz"]
    return paths


def _numpy_files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(2)
    paths = []
    for i, x in enumerate(
        (rng.normal(size=(9, 5)), rng.normal(size=(6, 3)).astype(np.float32), np.eye(4, dtype="i2"),
         np.asfortranarray(rng.normal(size=(5, 4))), np.array([[Bomb(), 1]], object))
    ):  # fmt: skip
        np.save(folder / f"{i}.npy", x)
        paths.append(folder / f"{i}.npy")
    return paths


def _state() -> Any:
    return (jnp.ones((3, 2), jnp.float32), jnp.ones(3, jnp.float32), jnp.zeros((), jnp.int32))


def _stopped(folder: Path) -> list[Path]:
    drive.save(folder / "run.npz", _state(), "a run")
    return [folder / "run.npz"]


def _factors(folder: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    data = recommender.ratings(rng.integers(0, 5, 30), rng.integers(0, 6, 30), np.ones(30), (5, 6))
    recommender.save(folder / "factors.npz", recommender.als(data, 2, sweeps=1))
    return [folder / "factors.npz"]


# ------------------------------------------------------------------------------------------ damage

INTERESTING = (b"\x00", b"\xff", b"-", b"1", b"9", b'"', b"{", b"'", b",", b"(", b"\n", b"\x80")
WORDS = (
    b"nan", b"inf", b"1e999", b"-1", b"99999999999999999999", b"null", b"{}", b"[]", b"'O'", b"|O",
    b"../../etc/passwd", b"\xff\xfe", b"\xc3\x28", b"True", b"<V2", b"1e300", b"0x10", b"\r", b"",
)  # fmt: skip


def damaged(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with one to four pieces of damage."""
    x = bytearray(data)
    gentle = not rng.integers(4)  # other numbers, in the second half
    for _ in range(rng.integers(1, 5)):
        if not x:
            break
        at = int(rng.integers(len(x) // 2 if gentle else 0, len(x)))
        to = min(len(x), at + int(rng.integers(1, 40)))
        kind = rng.choice([0, 1, 6]) if gentle else rng.integers(10)
        if kind == 0:
            x[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            x[at : at + 1] = INTERESTING[rng.integers(len(INTERESTING))]
        elif kind == 2:
            del x[at:]
        elif kind == 3:
            del x[at:to]
        elif kind == 4:
            x[at:at] = x[at:to] * int(rng.integers(1, 4))
        elif kind == 5:
            x[at:at] = WORDS[rng.integers(len(WORDS))]
        elif kind == 6:
            x[at:to] = rng.bytes(to - at)
        elif kind == 7 and other:
            x = x[:at] + bytearray(other[int(rng.integers(len(other))) :])
        else:  # a number in text becomes another
            digits = [i for i, c in enumerate(x[:400]) if 48 <= c < 58]
            if digits:
                i = digits[rng.integers(len(digits))]
                x[i : i + 1] = str(rng.choice([0, 1, 7, 9, 10**3, 10**9, 10**19, -1])).encode()
    return bytes(x)


def _inside_zip(data: bytes, rng: np.random.Generator) -> bytes:
    """Return an .npz one of whose arrays is damaged, with the checksums of the damaged one."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = rng.integers(len(names))
        for i, name in enumerate(names):
            content = old.read(name)
            if i == chosen:
                content = damaged(content, b"", rng)
                name = name if rng.integers(4) else rng.choice(["../x.npy", "/x.npy", "x", "y.npy"])
            new.writestr(str(name), content)
    return out.getvalue()


def _inside_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """Return a .safetensors whose header is damaged, its length being that of the damaged one."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = damaged(data[8:start], b"", rng)
    return len(header).to_bytes(8, "little") + header + data[start:]


def damage(path: Path, data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Return a damaged file of the same kind as the one at ``path``."""
    if rng.integers(2):
        if path.suffix == ".npz":
            return _inside_zip(data, rng)
        if path.suffix == ".safetensors":
            return _inside_safetensors(data, rng)
    return damaged(data, other, rng)


# ----------------------------------------------------------------------------------------- readers


def _rows(path: Path) -> None:
    source = as_source(path)
    dtype = working_dtype(source.dtype)
    for block in source.blocks(0, 4, lambda rows: np.empty((rows, source.shape[1]), dtype)):
        del block


def _checkpoint(path: Path) -> None:
    for x in _files.read_checkpoint(path).arrays.values():
        x.tobytes()


def _command(path: Path) -> None:
    """Run both commands; those that end with 0 leave a file that can be read, others none."""
    output = path.with_name(f"out{path.suffix}")
    before = path.read_bytes()
    for argv in (
        ["report", str(path)],
        ["compress", str(path), "-o", str(output), "--budget", "0.7"],
    ):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(argv)
        if code not in (0, 2):
            raise AssertionError(f"{argv[0]} ended with {code}")
        if code == 2 and err.getvalue().count("\n") != 1:
            raise AssertionError(f"not one line: {err.getvalue()!r}")
        if code == 2 and out.getvalue():
            raise AssertionError(f"output before a refusal: {out.getvalue()!r}")
        if (code == 0) != output.exists() and argv[0] == "compress":
            raise AssertionError(f"{argv[0]} ended with {code}, output is there: {output.exists()}")
    if output.exists():
        load_compressed(output)
        output.unlink()
    if path.read_bytes() != before:
        raise AssertionError("the input has changed")
    left = [x.name for x in path.parent.iterdir() if x != path]
    if left:
        raise AssertionError(f"left behind: {left}")
    if code == 2:
        raise ValueError(f"{path}: refused")


class Target(NamedTuple):
    """What reads a file.

    Attributes:
        name: of the row.
        files: writes whole files into a folder.
        read: reads one, damaged or not.
        share: of all files.
    """

    name: str
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    share: float


TARGETS = (
    Target("ratings, text", _ratings, recommender.load, 0.22),
    Target("factors, .npz", _factors, recommender.restore, 0.1),
    Target("checkpoint, .npz", lambda f: _checkpoints(f, ".npz"), _checkpoint, 0.16),
    Target(
        "checkpoint, .safetensors", lambda f: _checkpoints(f, ".safetensors"), _checkpoint, 0.18
    ),
    Target("compressed, .npz", lambda f: _checkpoints(f, ".npz"), load_compressed, 0.06),
    Target(
        "compressed, .safetensors", lambda f: _checkpoints(f, ".safetensors"), load_compressed, 0.06
    ),
    Target("rows, .npy", _numpy_files, _rows, 0.14),
    Target("stopped run, .npz", _stopped, lambda p: drive.load(p, _state(), "a run"), 0.06),
    Target("command line", lambda f: [*_checkpoints(f, ".npz"), *_checkpoints(f, ".safetensors")],
           _command, 0.02),
)  # fmt: skip


# ------------------------------------------------------------------------------------------- watch

_watched: set[str] | None = None
_seen: list[str] = []
# What Python itself reads: modules that are imported at first use, time zones.
_ITS_OWN = tuple({sysconfig.get_path(x) for x in ("stdlib", "purelib", "platlib")} | {sys.prefix})


# From 3.12 on it looks for the source of a syntax error in a file of the name of what it parses.
_PARSED = ("<string>", "<unknown>")


def _audit(event: str, arguments: tuple) -> None:
    if _watched is None:
        return
    if event == "pickle.find_class":
        _seen.append(f"unpickles {arguments}")
    elif event in ("open", "os.open") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        known = path.startswith(_ITS_OWN) or arguments[0] in _PARSED
        if os.path.dirname(path) not in _watched and not known:
            _seen.append(f"opens {path}")
    elif event in ("os.system", "subprocess.Popen", "socket.connect"):
        _seen.append(event)


@functools.cache
def _install() -> None:
    sys.addaudithook(_audit)


def verdict(read: Callable[[Path], Any], path: Path) -> str:
    """Return "read", "refused", or what is wrong with the way a file was treated."""
    global _watched
    _install()
    _seen.clear()
    start = time.perf_counter()
    cache = jax.config.jax_compilation_cache_dir
    _watched = {str(path.parent), *([cache] if cache else [])}
    try:
        # Double precision stays double: a cast that overflows warns, rightly.
        with warnings.catch_warnings(), jax.enable_x64(True):
            warnings.simplefilter("error")
            read(path)
        result = "read"
    except (ValueError, TypeError, OSError) as error:
        _watched = None  # a traceback reads source files
        text, result = str(error), "refused"
        _watched = None  # a traceback reads source files
        if path.name not in text and str(getattr(error, "filename", "")) != str(path):
            last = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(last.filename).name}:{last.lineno}"
            result = f"names no file: {type(error).__name__} at {at}"
        elif "\n" in text.strip():
            result = f"more than a line: {text[:200]!r}"
    except Exception as error:
        _watched = None  # a traceback reads source files
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(last.filename).name}:{last.lineno}"
        result = f"{type(error).__name__} at {at}: {str(error)[:200]}"
    finally:
        _watched = None
    if _seen:
        return f"{_seen[0]}"
    if time.perf_counter() - start > SECONDS:
        return f"took {time.perf_counter() - start:.0f} s"
    return result


class Found(NamedTuple):
    """What became of the files of a target: how many were read, refused, and what was wrong."""

    name: str
    read: int
    refused: int
    wrong: dict[str, int]
    examples: dict[str, bytes]


def fuzz(target: Target, count: int, seed: int) -> Found:
    """Damage and read ``count`` files."""
    rng = np.random.default_rng([seed, sum(map(ord, target.name))])
    verdicts: Counter[str] = Counter()
    examples: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        whole, there = Path(folder, "whole"), Path(folder, "damaged")
        whole.mkdir()
        there.mkdir()
        files = [(path, path.read_bytes()) for path in target.files(whole)]
        for path, data in files:  # whole ones are read, those with objects in them refused
            copy = there / path.name
            copy.write_bytes(data)
            verdicts[verdict(target.read, copy)] += 1
            copy.unlink()
        for number in range(count - len(files)):
            path, data = files[number % len(files)]
            other = files[rng.integers(len(files))][1]
            content = damage(path, data, other, rng)
            copy = there / path.name
            copy.write_bytes(content)
            result = verdict(target.read, copy)
            for left in there.iterdir():
                left.unlink()
            verdicts[result] += 1
            if result not in ("read", "refused"):
                examples.setdefault(result, content)
            if number % 2000 == 1999:
                gc.collect()
    read, refused = verdicts.pop("read", 0), verdicts.pop("refused", 0)
    return Found(target.name, read, refused, dict(verdicts), examples)


def fuzzing(quick: bool) -> Iterator[Row]:
    """Yield the row of `benchmarks.trust`: 100,000 files, each reader its share."""
    count = 1000 if quick else 100_000
    total, read, failures = 0, 0, []
    for target in TARGETS:
        found = fuzz(target, round(count * target.share), seed=0)
        total += found.read + found.refused + sum(found.wrong.values())
        read += found.read
        failures += [
            Failure(f"{target.name}, {n} files", text[:120]) for text, n in found.wrong.items()
        ]
    note = f"{read:,} could still be read, the others were refused in one sentence"
    yield Row("damaged files", total, None, None, tuple(failures), note)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--count", type=int, default=2000, help="files in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="readers with one of these words")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="write an example of each fault"
    )
    args = parser.parse_args(argv)
    wrong = 0
    for target in TARGETS:
        if args.only and not any(word in target.name for word in args.only):
            continue
        start = time.perf_counter()
        found = fuzz(target, round(args.count * target.share), args.seed)
        seconds = time.perf_counter() - start
        print(f"{found.name:28} {found.read:7} read {found.refused:7} refused  {seconds:.0f} s")
        for number, (text, n) in enumerate(found.wrong.items()):
            print(f"  {n:5}  {text}", flush=True)
            if args.keep and text in found.examples:
                args.keep.mkdir(exist_ok=True)
                (args.keep / f"{target.name}-{number}").write_bytes(found.examples[text])
        wrong += sum(found.wrong.values())
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
