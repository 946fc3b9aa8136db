"""How adapters begin: at random, at the largest or smallest triplets, at the inputs' directions."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks, _leaves
from .._leaves import Axes, Place, Where
from .._types import SVDResult
from ..algorithms.products import adjoint
from ..layers import factors
from ..linalg import rank_for_energy
from ..primitives.svd import svd, svdvals
from ..primitives.truncated import check_key, truncated_svd
from .adapter import Adapter, column_norms

METHODS = ("standard", "pissa", "milora", "eva")
LAYOUTS = ("in_out", "out_in")


def checked_rank(name: str, rank: Any) -> Any:
    """Return a rank: an int, a share of the energy, or a dict of patterns to either; or raise."""
    if isinstance(rank, Mapping):
        if not rank:
            raise ValueError(f"{name}: `rank` must hold a pattern, got an empty dict")
        for pattern in rank:
            try:
                re.compile(pattern)
            except (re.error, TypeError):
                raise ValueError(
                    f"{name}: `rank` must map regular expressions to ranks, got {pattern!r}"
                ) from None
        return {pattern: checked_rank(name, one) for pattern, one in rank.items()}
    if isinstance(rank, (float, np.floating)):
        if not 0 < rank < 1:
            raise ValueError(
                f"{name}: `rank` as a share of the energy must satisfy 0 < rank < 1, got {rank}"
            )
        return float(rank)
    return _checks.static_int(name, "rank", rank, 1, 2**31)


def of_path(name: str, rank: Any, path: str, asked: bool) -> Any:
    """Return the rank of a leaf, or None if a dict has no pattern for it and it was not asked."""
    if not isinstance(rank, dict):
        return rank
    found = next((one for pattern, one in rank.items() if re.search(pattern, path)), None)
    if found is None and asked:
        raise ValueError(
            f"{name}: `rank` must have a pattern for {path!r}, which `where` selects, got "
            f"{', '.join(map(repr, rank))}"
        )
    return found


def finite(name: str, path: str, a: jax.Array, what: str = "params") -> jax.Array:
    """Return an array without NaN and Inf, or raise by path; a traced one is taken as it is."""
    if not isinstance(a, Tracer) and not bool(jnp.all(jnp.isfinite(a))):
        raise ValueError(f"{name}: `{what}` must be finite, got NaN or Inf in leaf {path!r}")
    return a


def by_energy(name: str, path: str, a: jax.Array, share: float) -> int:
    """Return the smallest rank that holds a share of the energy of every matrix of a leaf."""
    if isinstance(a, Tracer):
        raise TypeError(
            f"{name}: `rank` as a share of the energy wants concrete arrays, got a traced one in "
            f"leaf {path!r}"
        )
    return max(1, int(jnp.max(rank_for_energy(svdvals(a), share))))


def _inputs(name: str, inputs: Any, path: str, kernel: jax.Array) -> jax.Array:
    """Return the inputs (..., N, inputs) that a leaf has seen, for EVA."""
    if not isinstance(inputs, Mapping) or path not in inputs:
        came = sorted(inputs) if isinstance(inputs, Mapping) else inputs
        raise ValueError(
            f"{name}: `inputs` must map path {path!r} to the inputs (N, {kernel.shape[-2]}) of "
            f"that leaf for method 'eva', got {_checks.describe(came)}"
        )
    x = _checks.matrix(name, inputs[path], f"inputs[{path!r}]")
    wanted = (*kernel.shape[:-2], x.shape[-2], kernel.shape[-2])
    if x.shape != wanted:
        raise ValueError(
            f"{name}: `inputs` must have shape {(*wanted[:-2], 'N', wanted[-1])} for leaf "
            f"{path!r}, got {x.shape}"
        )
    return finite(name, path, x, "inputs").astype(kernel.dtype)


def _start(method: str, W: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Return balanced factors of the leading ("pissa") or the last ("milora") triplets."""
    if method == "pissa":
        result = truncated_svd(W, rank)
        assert isinstance(result, SVDResult)
        return factors.balanced(result)
    U, S, Vh = svd(W, full_matrices=False)
    return factors.balanced(SVDResult(U[..., -rank:], S[..., -rank:], Vh[..., -rank:, :]))


def _of_kernel(key, W: jax.Array, x: Any, method: str, rank: int, scale: float) -> dict[str, Any]:
    """Return the arrays of an adapter of W (..., inputs, outputs)."""
    *batch, m, n = W.shape
    if method in ("pissa", "milora"):
        root = jnp.asarray(scale**-0.5, W.dtype)
        down, up = (root * part for part in _start(method, W, rank))
        # Copies: an optimizer may be given the first pair to write over (donated).
        return {"down": down, "up": up, "start": (jnp.copy(down), jnp.copy(up))}
    up = jnp.zeros((*batch, rank, n), W.dtype)
    if method == "standard":  # as `torch.nn.Linear` begins, and PEFT's lora_A with it
        down = jax.random.uniform(key, (*batch, m, rank), W.real.dtype, -1, 1) / m**0.5
        return {"down": down.astype(W.dtype), "up": up}
    result = truncated_svd(x, rank)
    assert isinstance(result, SVDResult)
    return {"down": adjoint(result.Vh), "up": up}


def init(
    key: jax.Array,
    params: Any,
    rank: Any,
    where: Where = None,
    axes: Axes = None,
    *,
    method: str = "standard",
    alpha: float | None = None,
    rslora: bool = False,
    dora: bool = False,
    layout: str = "in_out",
    inputs: Mapping[str, Any] | None = None,
) -> Any:
    """Return a tree of adapters with which `apply` gives the parameters themselves.

        standard: down uniform in +-1/sqrt(inputs), up = 0
        pissa:    down up = the r leading triplets of W / scale, also the start that is subtracted
        milora:   the same of the r last ones, so that what is trained first is what W uses least
        eva:      down = the r leading right singular vectors of the leaf's inputs, up = 0

    Cost: pissa and eva a truncated SVD for each leaf, milora a full one.

    Args:
        key: from `jax.random.key`.
        params: pytree of arrays; Equinox models as ``eqx.filter(model, eqx.is_inexact_array)``.
        rank: static int, at most the shorter side of each matrix counts; a share of the energy of
            each matrix (of the inputs for "eva"), 0 < rank < 1, on concrete arrays; or a dict from
            regular expressions to these, first match first.
        where: leaves, as in `jaxsvd.regularizers`; by default all matrices, or those that a dict of
            ranks has a pattern for.
        axes: rows and columns, as there: ((0, 1, 2), 3) for kernels HWIO.
        method: "standard", "pissa", "milora" or "eva".
        alpha: the change is alpha / r (down up - start); None for a factor of one.
        rslora: alpha / sqrt(r) instead, so that large ranks learn as fast.
        dora: train the norms of the columns apart from their directions.
        layout: "in_out" for kernels (inputs, outputs); "out_in" for those of Equinox and PyTorch.
        inputs: for "eva": by path of the leaf, samples (N, inputs) of what it is multiplied with.

    Returns:
        The pytree with an `Adapter` for each selected leaf and None for the others. Half precision
        is adapted in float32.

    Raises:
        TypeError: ``key`` is no key; a leaf of integers is selected; a traced leaf and an energy.
        ValueError: an argument does not fit, by name; NaN or Inf in a leaf, by path.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd
        >>> params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
        >>> adapters = jaxsvd.lora.init(jax.random.key(0), params, 2, alpha=4)
        >>> adapters["dense"]["kernel"].down.shape, adapters["dense"]["kernel"].scale
        ((4, 2), 2.0)

    References:
        Hu et al. (2022), LoRA; Meng, Wang and Zhang (2024), "PiSSA", equations 2 to 4; Wang et al.
        (2025), "MiLoRA"; Paischer et al. (2024), "One initialization to rule them all: fine-tuning
        via explained variance adaptation"; Kalajdzievski (2023), rsLoRA; Liu et al. (2024), DoRA.
    """
    name = "lora.init"
    key = check_key(name, key)
    method = _checks.choice(name, "method", method, METHODS)
    layout = _checks.choice(name, "layout", layout, LAYOUTS)
    rslora, dora = _checks.flag(name, "rslora", rslora), _checks.flag(name, "dora", dora)
    alpha = None if alpha is None else float(_checks.positive(name, "alpha", alpha))
    rank = checked_rank(name, rank)
    places = _leaves.select(params, where, axes, name=name)
    found: dict[str, Any] = {}
    for path, matrix in _leaves.matrices(params, places).items():
        wanted = of_path(name, rank, path, where is not None)
        if wanted is None:
            continue
        W = finite(name, path, _checks.working(matrix.mT if layout == "out_in" else matrix))
        x = _inputs(name, inputs, path, W) if method == "eva" else None
        if isinstance(wanted, float):
            wanted = by_energy(name, path, W if x is None else x, wanted)
        r = min(wanted, *W.shape[-2:])
        if x is not None and r > x.shape[-2]:
            raise ValueError(
                f"{name}: `inputs` must hold {r} samples for leaf {path!r}, one for each of the "
                f"rank, got {x.shape[-2]}"
            )
        scale = 1.0 if alpha is None else alpha / (r**0.5 if rslora else r)
        place: Place = places[path]
        arrays = _of_kernel(jax.random.fold_in(key, place.index), W, x, method, r, scale)
        if dora:
            arrays |= {"magnitude": column_norms(W), "norm": column_norms(W)}
        found[path] = Adapter(
            **arrays,
            scale=scale,
            rslora=rslora,
            transposed=layout == "out_in",
            rows=place.rows,
            columns=place.columns,
        )
    if not found:
        raise ValueError(f"{name}: `rank` must match a path, got {', '.join(map(repr, rank))}")
    return sparse(params, places, found)


def sparse(params: Any, places: Mapping[str, Place], found: Mapping[str, Any]) -> Any:
    """Return the pytree with what is found at its places and None everywhere else."""
    leaves, structure = jax.tree.flatten(params)
    leaves = [None] * len(leaves)
    for path, adapter in found.items():
        leaves[places[path].index] = adapter
    return structure.unflatten(leaves)
