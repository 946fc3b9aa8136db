"""`python -m jaxsvd info`: what runs here, and which algorithm serves which shape."""

import collections
import json
import platform
import textwrap
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

import jaxsvd

from .. import _checks
from ..algorithms.dense import Request
from ..algorithms.router import GPU, PLATFORMS, route

# Shapes a user may have in mind, with the words for them.
TYPICAL = (
    ((100_000, 3, 3), "rotations of point sets"),
    ((256, 32, 32), "small blocks"),
    ((64, 64), "a small matrix"),
    ((1000, 64), "a data set of 64 features"),
    ((1024, 1024), "a layer of a network"),
    ((4096, 4096), "a large layer"),
    ((400_000, 2), "tall and thin"),
)


class Refused(ValueError):
    """The command makes no sense; the message is the sentence for the user."""


def _versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "optax")}
    return {"jaxsvd": jaxsvd.__version__, **others, "python": platform.python_version()}


def _platform() -> tuple[str, list[str]]:
    """Return the platform and a line for each kind of device; or why JAX finds none."""
    try:
        kinds = collections.Counter(device.device_kind for device in jax.devices())
        return jax.default_backend(), [f"{count} x {kind}" for kind, count in kinds.items()]
    except RuntimeError as error:
        return "none", [f"none: {error}"]


def headline() -> str:
    """Return versions and devices in one line."""
    versions = _versions()
    names = ("jaxsvd", "jax", "numpy", "python")
    return " | ".join([*(f"{name} {versions[name]}" for name in names), ", ".join(_platform()[1])])


def _dtypes(name: str) -> tuple[str, str]:
    """Return the dtype that JAX makes of ``name`` here, and the one the work is done in."""
    try:
        asked = jnp.dtype(name)
        if not (jnp.issubdtype(asked, jnp.number) or asked == jnp.bool_):
            raise TypeError
    except TypeError:
        raise Refused(
            f"--dtype must name a dtype of numbers such as float32, bfloat16 or complex64, "
            f"got {name!r}"
        ) from None
    given = jnp.dtype(jax.dtypes.canonicalize_dtype(asked))
    work = jax.eval_shape(
        lambda a: _checks.working(_checks.matrix("info", a)), jax.ShapeDtypeStruct((1, 1), given)
    )
    return given.name, work.dtype.name


def collect(shapes: Sequence[tuple[tuple[int, ...], str]], dtype: str) -> dict[str, Any]:
    """Return everything that `info` shows, ready for JSON."""
    given, work = _dtypes(dtype)
    backend, devices = _platform()
    kind = backend if backend in PLATFORMS else GPU
    asked = Request(dtype=jnp.dtype(work))
    rows = [(shape, note, route(shape, asked, kind)) for shape, note in shapes]
    return {
        "versions": _versions(),
        "platform": backend,
        "devices": devices,
        "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue]
        "default_matmul_precision": jax.config.jax_default_matmul_precision,  # pyright: ignore[reportAttributeAccessIssue]
        "dtype": {"asked": dtype, "stored": given, "computed": work},
        "algorithms": [
            {"shape": list(shape), "note": note, "algorithm": row.name, "why": row.why}
            for shape, note, row in rows
        ],
    }


def _text(found: dict[str, Any]) -> str:
    dtype = found["dtype"]
    if dtype["stored"] != dtype["asked"]:
        numbers = (
            f"{dtype['asked']} becomes {dtype['stored']} because x64 is off "
            "(JAX_ENABLE_X64=1 turns it on)"
        )
    elif dtype["computed"] != dtype["stored"]:
        numbers = f"{dtype['stored']}, computed in {dtype['computed']}"
    else:
        numbers = dtype["stored"]
    facts = {
        **found["versions"],
        "platform": found["platform"],
        "devices": ", ".join(found["devices"]),
        "x64": "on" if found["x64"] else "off",
        "precision": f"{found['default_matmul_precision'] or 'default'} for your products; "
        "jaxsvd runs its own at HIGHEST",
        "matrix dtype": numbers,
    }
    lines = [f"{name:<13} {value}" for name, value in facts.items()]
    rows = [
        (" x ".join(map(str, row["shape"])), row["note"], row["algorithm"], row["why"])
        for row in found["algorithms"]
    ]
    noted = any(note for _, note, _, _ in rows)
    lines.append("")
    for shape, note, algorithm, why in [("shape", "such as", "algorithm", "why"), *rows]:
        first = f"{shape:<18} {f'{note:<28} ' if noted else ''}{algorithm:<10} "
        indent = " " * len(first)
        lines += textwrap.wrap(why, 110, initial_indent=first, subsequent_indent=indent)
    return "\n".join(lines)


def run(shape: Sequence[int], batch: int | None, dtype: str, as_json: bool) -> int:
    """Print what is asked; raise `Refused` with a sentence for sizes or dtypes that are none."""
    if len(shape) not in (0, 2):
        raise Refused(f"give both M and N, or neither, got {len(shape)} sizes")
    if batch is not None and not shape:
        raise Refused("--batch B needs the shape M N of one matrix")
    sizes = (*([] if batch is None else [batch]), *shape)
    if any(size < 0 for size in sizes):
        raise Refused(f"sizes must be 0 or more, got {' x '.join(map(str, sizes))}")
    found = collect([(sizes, "")] if shape else TYPICAL, dtype)
    print(json.dumps(found, indent=2) if as_json else _text(found))
    return 0
