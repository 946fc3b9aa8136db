"""Compressed parameters in a file and back: factors under documented names, nothing pickled."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _checks, _files, _leaves
from .._types import SVDResult
from .factorize import as_low_rank
from .stored import Folded, is_compressed

# The entry of a file's metadata that says which leaves are factors.
ENTRY = "jaxsvd.compress"
VERSION = 1
PARTS = ("U", "s", "Vh")
SIDES = ("rows", "columns")


def to_arrays(name: str, params: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays of a file by name, and what ENTRY says of each factored leaf."""
    arrays: dict[str, np.ndarray] = {}
    factored: dict[str, Any] = {}
    for path, leaf in _leaves.paths(params, is_compressed):
        parts = {path: leaf}
        if is_compressed(leaf):
            factors = leaf.factors if isinstance(leaf, Folded) else leaf
            U, s, Vh = (getattr(factors, part) for part in PARTS)
            parts = {f"{path}.{part}": x for part, x in zip(PARTS, (U, s, Vh), strict=True)}
            factored[path] = {"shape": [*U.shape[:-1], Vh.shape[-1]], "rank": s.shape[-1]}
            if isinstance(leaf, Folded):
                folded = {"shape": leaf.shape, "rows": leaf.rows, "columns": leaf.columns}
                factored[path] |= {key: list(value) for key, value in folded.items()}
        for part, x in parts.items():
            if part in arrays:
                raise ValueError(f"{name}: `params` must name each array once, got two {part!r}")
            arrays[part] = np.asarray(x)
    return arrays, factored


def save(
    params: Any,
    path: str | os.PathLike,
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write parameters, compressed or not, as .safetensors or .npz.

    A leaf has its path as name, keys joined by "/" as in "dense/kernel". A compressed one is

        NAME.U (..., m, r)   NAME.s (..., r)   NAME.Vh (..., r, n)      weight = U diag(s) Vh

    and the metadata entry "jaxsvd.compress" (in the header of safetensors; of .npz in the array
    "__metadata__", JSON as bytes) is JSON, {"version": 1, "leaves": {NAME: {"shape", "rank"}}},
    with "rows" and "columns" where a leaf of that shape has other axes as rows and columns than
    its last two. The file appears whole or not at all; nothing is pickled.

    Args:
        params: pytree of arrays and what `to_budget` puts in their place.
        path: of the file; its suffix says the format.
        metadata: other entries for the file, strings.
        force: replace a file that exists.

    Raises:
        FileExistsError: the file exists, without ``force``.
        ImportError: safetensors is not installed.
        ValueError: another suffix; two arrays of one name; a dtype that the format has not.

    Example:
        >>> import jax.numpy as jnp, jaxsvd, tempfile
        >>> params = {"w": jnp.ones((8, 8)), "b": jnp.ones(8)}
        >>> small, _ = jaxsvd.compress.to_budget(params, 30)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxsvd.compress.save(small, f"{folder}/small.npz")
        ...     again = jaxsvd.compress.load(f"{folder}/small.npz")
        >>> again["w"].U.shape, jaxsvd.compress.densify(again)["w"].shape
        ((8, 1), (8, 8))
    """
    name = "save"
    if Path(path).exists() and not _checks.flag(name, "force", force):
        raise FileExistsError(f"{name}: `path` must not exist without force=True, got {path}")
    arrays, factored = to_arrays(name, params)
    text = json.dumps({"version": VERSION, "leaves": factored}, sort_keys=True)
    _files.write_checkpoint(path, arrays, {**(metadata or {}), ENTRY: text})


def factored_leaves(path: Any, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what a file's metadata says of its factored leaves; nothing of other writers."""
    if ENTRY not in metadata:
        return {}
    try:
        entry = json.loads(metadata[ENTRY])
        version, leaves = entry["version"], dict(entry["leaves"])
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: the metadata entry {ENTRY!r} cannot be read") from None
    if version != VERSION:
        raise ValueError(f"{path}: wanted version {VERSION} of {ENTRY!r}, got {version!r}")
    return leaves


def from_arrays(path: Any, found: _files.Checkpoint) -> dict[str, Any]:
    """Return the leaves of a file by name, factors being one leaf; raise if they do not fit."""
    leaves: dict[str, Any] = dict(found.arrays)
    for name, entry in factored_leaves(path, found.metadata).items():
        try:
            U, s, Vh = (jnp.asarray(leaves.pop(f"{name}.{part}")) for part in PARTS)
            factors = as_low_rank(SVDResult(U, s, Vh), U.dtype)
            shape = tuple(entry["shape"])
            leaf: Any = factors
            if "rows" in entry:
                leaf = Folded(factors, shape, tuple(entry["rows"]), tuple(entry["columns"]))
            elif shape != (*U.shape[:-1], Vh.shape[-1]):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{path}: leaf {name!r} must be {', '.join(f'{name}.{part}' for part in PARTS)} "
                "that fit one another and the metadata"
            ) from None
        leaves[name] = leaf
    return leaves


def load(path: str | os.PathLike, like: Any = None) -> Any:
    """Return what `save` wrote, or the arrays of any .safetensors or .npz file.

    Args:
        path: of the file.
        like: parameters of the model, compressed or not, or their shapes, for their structure;
            default a dict by name.

    Returns:
        Dict from names to arrays and to LowRank or Folded, or the tree of ``like`` with these as
        leaves. bfloat16 and float8 keep their dtypes; double precision becomes single with x64
        off. `densify` gives arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: safetensors is not installed.
        ValueError: the file is damaged, or of another model; a dtype that is unknown.

    Example:
        See `save`.
    """
    name = "load"
    leaves = from_arrays(path, _files.read_checkpoint(path))
    leaves = jax.tree.map(jnp.asarray, leaves)
    if like is None:
        return leaves
    wanted = dict(_leaves.paths(like, is_compressed))
    for other in sorted(set(leaves) ^ set(wanted)):
        what = "not in `like`" if other in leaves else "not in the file"
        raise ValueError(
            f"{name}: {path} must be of the model of `like`, got leaf {other!r} {what}"
        )
    for at, leaf in wanted.items():
        shape, came = shape_of(leaf), shape_of(leaves[at])
        if shape != came:
            raise ValueError(
                f"{name}: {path} must be of the model of `like`, got shape {came} for leaf "
                f"{at!r} of shape {shape}"
            )
    structure = jax.tree.structure(like, is_leaf=is_compressed)
    return structure.unflatten([leaves[at] for at in wanted])


def save_metrics(
    metrics: Mapping[str, Any], path: str | os.PathLike, *, force: bool = False
) -> None:
    """Write metrics, as from `collect_gram`, for `python -m jaxsvd compress --metrics`.

    Arrays NAME.rows and NAME.columns, of the rows and columns of leaf NAME; none where there is no
    metric.

    Args:
        metrics: by path of the leaf an array, of its rows, or a pair (of rows, of columns), each
            an array or None.
        path: of the file, .npz or .safetensors.
        force: replace a file that exists.

    Raises:
        FileExistsError: the file exists, without ``force``.
        ImportError: safetensors is not installed.
        TypeError: a metric is no array.
        ValueError: another suffix; a dtype that the format has not.

    Example:
        >>> import jax.numpy as jnp, jaxsvd, tempfile
        >>> params = {"w": jnp.eye(3)}
        >>> metrics = jaxsvd.compress.collect_gram(lambda p, x: x @ p["w"], params, [jnp.eye(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     jaxsvd.compress.save_metrics(metrics, f"{folder}/stats.npz")
        ...     jaxsvd.compress.load(f"{folder}/stats.npz")["w.rows"].shape
        (3, 3)
    """
    name = "save_metrics"
    if Path(path).exists() and not _checks.flag(name, "force", force):
        raise FileExistsError(f"{name}: `path` must not exist without force=True, got {path}")
    arrays = {}
    for leaf, metric in metrics.items():
        pair = metric if isinstance(metric, tuple) else (metric, None)
        for side, x in zip(SIDES, pair, strict=True):
            if x is not None:
                arrays[f"{leaf}.{side}"] = _checks.array(name, x, f"metrics[{leaf!r}]")
    _files.write_checkpoint(path, arrays, {})


def metrics_from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, Any]]:
    """Return metrics as `to_budget` takes them; an array NAME alone is of the rows."""
    pairs: dict[str, list[Any]] = {}
    for name, x in arrays.items():
        leaf, dot, side = name.rpartition(".")
        if not dot or side not in SIDES:
            leaf, side = name, SIDES[0]
        pairs.setdefault(leaf, [None, None])[SIDES.index(side)] = x
    return {leaf: (rows, columns) for leaf, (rows, columns) in pairs.items()}


def shape_of(leaf: Any) -> tuple[int, ...]:
    """Return the shape of the array that a leaf, compressed or not, stands for."""
    if isinstance(leaf, Folded):
        return tuple(leaf.shape)
    if is_compressed(leaf):
        return (*leaf.U.shape[:-1], leaf.Vh.shape[-1])
    return tuple(getattr(leaf, "shape", ()))
