"""Images compressed by truncated SVDs of their channels."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _checks
from .._types import SVDResult
from ..algorithms.products import product
from ..linalg.rank import rank_for_energy
from ..primitives.svd import svd
from ..primitives.truncated import truncated_svd


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Compressed:
    """An image as factors, channel by channel.

    Attributes:
        U: left vectors, (channels, H, k), in the precision of the work.
        S: singular values, (channels, k); zero beyond the rank of a channel.
        Vh: right vectors, (channels, k, W).
        psnr: peak signal-to-noise ratio of `reconstruct` in decibels, (); infinite if it is exact.
        ranks: static; how many triplets each channel keeps.
        shape: static; of the image, (H, W) or (H, W, channels).
        dtype: static; of the image.
    """

    U: jax.Array
    S: jax.Array
    Vh: jax.Array
    psnr: jax.Array
    ranks: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})

    @property
    def storage(self) -> int:
        """Numbers to store: r (H + W + 1) for a channel of rank r."""
        return sum(self.ranks) * (sum(self.shape[:2]) + 1)

    @property
    def ratio(self) -> float:
        """The numbers of the image by those to store; below one it does not pay."""
        return float(np.prod(self.shape)) / self.storage


def _channels(image: jax.Array, dtype: Any) -> jax.Array:
    """Return an image as (channels, H, W) in the precision of the work."""
    image = image.astype(dtype)
    return image[None] if image.ndim == 2 else jnp.moveaxis(image, -1, 0)


def _restored(channels: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Return channels as an image of a shape and dtype: integers rounded and within range."""
    image = channels[0] if len(shape) == 2 else jnp.moveaxis(channels, 0, -1)
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        image = jnp.clip(jnp.round(image), limits.min, limits.max)
    return image.astype(dtype)


def _multiplied(U: jax.Array, S: jax.Array, Vh: jax.Array) -> jax.Array:
    return product(U * S[:, None, :], Vh)


@functools.partial(jax.jit, static_argnames=("ranks", "peak"))
def _compressed(image: jax.Array, factors: SVDResult, ranks: tuple, peak: float) -> Compressed:
    U, S, Vh = factors
    k = max(ranks)
    kept = jnp.arange(k)[None, :] < jnp.asarray(ranks)[:, None]
    U, S, Vh = U[:, :, :k], jnp.where(kept, S[:, :k], 0), Vh[:, :k]
    back = _restored(_multiplied(U, S, Vh), image.shape, image.dtype)
    # Differences of integers that have no sign, in floating point.
    error = jnp.mean((back.astype(S.dtype) - image.astype(S.dtype)) ** 2)
    psnr = 20 * jnp.log10(jnp.asarray(peak, S.dtype)) - 10 * jnp.log10(error)
    return Compressed(U, S, Vh, psnr, ranks, image.shape, np.dtype(image.dtype))


def compress(
    image: Any, k: int | None = None, *, energy: float | None = None, peak: float | None = None
) -> Compressed:
    """Return the best approximation of rank k of each channel, with its storage and its PSNR.

        channel ~ U_k diag(s) V_k^H in k (H + W + 1) numbers,   PSNR = 10 log10(peak^2 / MSE)

    The PSNR is that of the image as `reconstruct` returns it, integers rounded and clipped. No
    other factors of this rank come closer in the mean square (Eckart and Young), before rounding.

    Cost: a truncated SVD of each channel for k, a full one for the energy.

    Args:
        image: (H, W), or (H, W, channels), uint8 or another integer, or floating point.
        k: static rank of every channel, 1 <= k <= min(H, W); or
        energy: share of the sum of squares that each channel keeps, 0 < energy <= 1, with the
            least rank that does (at least 1). It needs the values, so it works outside of jit only.
        peak: static; the largest possible value, by default that of the integer dtype, or 1.0.

    Returns:
        Compressed: the factors and what they cost. NaN for an image that holds NaN or Inf.

    Raises:
        TypeError: ``image`` is not an array, or complex; ``k`` traced; ``energy`` under jit.
        ValueError: no image by its shape; not one of k and energy; either out of range; energy of
            an image that holds NaN or Inf.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsvd.models import image
        >>> stripes = jnp.tile(jnp.array([[0, 100, 200, 50]], jnp.uint8), (30, 5))
        >>> small = image.compress(stripes, 1)
        >>> print(small.storage, round(small.ratio, 2), small.psnr)
        51 11.76 inf
        >>> bool(jnp.all(image.reconstruct(small) == stripes))
        True

    References:
        Eckart and Young (1936); Andrews and Patterson (1976), IEEE Trans. Comm. 24.
    """
    name = "image.compress"
    a = _image(name, image)
    work = a.dtype if a.dtype in (jnp.float32, jnp.float64) else jnp.float32
    peak = _peak(name, peak, a.dtype)
    if (k is None) == (energy is None):
        raise ValueError(f"{name}: give `k` or `energy`, one of them, got k={k}, energy={energy}")
    channels = _channels(a, work)
    count, *sizes = channels.shape
    if energy is None:
        k = _checks.static_int(name, "k", k, 1, min(sizes))
        factors = truncated_svd(channels, k)
        return _compressed(a, factors, (k,) * count, peak)
    if isinstance(a, Tracer):
        raise TypeError(f"{name}: `energy` must be used outside of jit: it looks at values; give k")
    factors = svd(channels, full_matrices=False)
    ranks = np.asarray(rank_for_energy(factors.S, energy))  # checks the rest of it
    if energy == 0:
        raise ValueError(f"{name}: `energy` must satisfy 0 < energy <= 1, got {energy}")
    if np.any(ranks < 0):
        raise ValueError(f"{name}: `image` must be finite to count its energy, got NaN or Inf")
    return _compressed(a, factors, tuple(max(int(r), 1) for r in ranks), peak)


def _image(name: str, image: Any) -> jax.Array:
    if not isinstance(image, (jax.Array, np.ndarray)):
        raise TypeError(f"{name}: `image` must be an array, got {_checks.describe(image)}")
    a = jnp.asarray(image)
    real = jnp.issubdtype(a.dtype, jnp.integer) or jnp.issubdtype(a.dtype, jnp.floating)
    if not real:
        raise TypeError(f"{name}: `image` must hold integers or floats, got dtype {a.dtype}")
    if a.ndim not in (2, 3) or 0 in a.shape:
        raise ValueError(
            f"{name}: `image` must have shape (H, W) or (H, W, channels), got {a.shape}"
        )
    return a


def _peak(name: str, peak: Any, dtype: Any) -> float:
    if peak is None:
        return float(jnp.iinfo(dtype).max) if jnp.issubdtype(dtype, jnp.integer) else 1.0
    if isinstance(peak, Tracer):
        raise TypeError(f"{name}: `peak` must be a Python number, got a traced value")
    return float(_checks.positive(name, "peak", peak))


@jax.jit
def reconstruct(compressed: Compressed) -> jax.Array:
    """Return the image of `compress`: U_k diag(s) V_k^H of each channel.

    Cost: k H W multiplications a channel.

    Args:
        compressed: from `compress`.

    Returns:
        Array of the shape and dtype of the image; integers rounded and clipped to their range.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsvd.models import image
        >>> grey = jnp.outer(jnp.linspace(0.0, 1.0, 4), jnp.ones(3))
        >>> print(jnp.round(jnp.abs(image.reconstruct(image.compress(grey, 1))), 4))
        [[0.     0.     0.    ]
         [0.3333 0.3333 0.3333]
         [0.6667 0.6667 0.6667]
         [1.     1.     1.    ]]

    References:
        Eckart and Young (1936).
    """
    channels = _multiplied(compressed.U, compressed.S, compressed.Vh)
    return _restored(channels, compressed.shape, compressed.dtype)
