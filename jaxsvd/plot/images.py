"""Pictures side by side: an image at several ranks, singular vectors as curves or as images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .. import _checks
from ..models import image as images
from . import data
from .style import DIVERGING, drawing, line, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 0.06  # between pictures, in their width
_ROW = 5  # pictures in a row


def _tiles(
    ax: "Axes", own: bool, pictures: Sequence[np.ndarray], captions: Sequence[str], **look: Any
) -> None:
    """Draw pictures of one shape in rows into one Axes, each with a line of text above.

    A figure of one's own (``own``) takes their proportions.
    """
    height, width = pictures[0].shape[:2]
    text = 0.16 * width
    across, down = width * (1 + _GAP), height + text
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = across * (index % _ROW), down * (index // _ROW) + text
        ax.imshow(picture, extent=(x, x + width, y + height, y), **look)
        ax.text(x + width / 2, y - text / 6, caption, ha="center", va="bottom", fontsize=9)
    columns, rows = min(len(pictures), _ROW), -(-len(pictures) // _ROW)
    size = across * columns - width * _GAP, down * rows
    ax.set(xlim=(0, size[0]), ylim=(size[1], 0))
    ax.axis("off")
    ax.set_aspect("equal")
    if own:
        inches = 2.0 * columns
        ax.figure.set_size_inches(inches, inches * size[1] / size[0])  # pyright: ignore[reportAttributeAccessIssue]


def low_rank_images(
    image: Any, ranks: Sequence[int], *, peak: float | None = None, ax: Any = None
) -> "Axes":
    """Draw an image and its best approximations of several ranks, with storage and PSNR.

    Each channel is approximated by itself, as by `models.image.compress`; a rank stores
    r (H + W + 1) numbers for each.

    Args:
        image: (H, W), or (H, W, channels) with 3 or 4 channels; integers, or floating point in
            [0, peak].
        ranks: of the approximations, each 1 <= r <= min(H, W).
        peak: the largest possible value, by default that of the integer dtype, or 1.0.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes, with one image for the original and one for each rank.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: a traced or complex image, NaN, another shape, ranks out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> stripes = jnp.tile(jnp.array([[0, 100, 200, 50]], jnp.uint8), (30, 5))
        >>> ax = jaxsvd.plot.low_rank_images(stripes, [1])
        >>> print([text.get_text() for text in ax.texts])
        ['original', 'rank 1: 8.5 %, exact']
    """
    name = "plot.low_rank_images"
    data.concrete(name, image, "image")
    a = jnp.asarray(image)
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[-1] not in (3, 4)) or not a.size:
        raise ValueError(f"{name}: `image` must have shape (H, W) or (H, W, 3 or 4), got {a.shape}")
    if not isinstance(ranks, Sequence) or isinstance(ranks, str) or not ranks:
        raise TypeError(f"{name}: `ranks` must be a list of ints, got {_checks.describe(ranks)}")
    most = min(a.shape[:2])
    ranks = [_checks.static_int(name, "ranks", r, 1, most, "r") for r in ranks]
    top = peak or (float(jnp.iinfo(a.dtype).max) if jnp.issubdtype(a.dtype, jnp.integer) else 1.0)
    pictures, captions = [np.asarray(a)], ["original"]
    for rank in ranks:
        found = images.compress(a, rank, peak=peak)
        pictures.append(np.asarray(images.reconstruct(found)))
        quality = f"{float(found.psnr):.1f} dB" if np.isfinite(found.psnr) else "exact"
        captions.append(f"rank {rank}: {1 / found.ratio:.1%}".replace("%", " %") + f", {quality}")
    shown = [np.clip(np.asarray(p, np.float64) / top, 0, 1) for p in pictures]
    with drawing(name, ax) as new:
        look = {"cmap": "gray", "vmin": 0, "vmax": 1} if a.ndim == 2 else {}
        _tiles(new, ax is None, shown, captions, **look)
    return new


def singular_vectors(
    a: Any,
    k: int = 3,
    *,
    side: str = "left",
    shape: tuple[int, int] | None = None,
    ax: Any = None,
) -> "Axes":
    """Draw the leading singular vectors: entries as curves, or each vector as an image.

    Args:
        a: real matrix (m, n), or an `SVDResult`.
        k: how many.
        side: "left" for the columns of U, "right" for the rows of Vh.
        shape: (rows, columns) of the image that a vector is, read row by row; None for curves.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes, with k lines, or with k images whose colours are centred at zero.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: a traced array, a batch, complex or NaN data; ``k``, ``side`` or
            ``shape`` that do not fit.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> ax = jaxsvd.plot.singular_vectors(jnp.diag(jnp.array([2.0, 1.0])), 1)
        >>> print(ax.lines[0].get_ydata(), ax.lines[0].get_label())
        [1. 0.] $u_{1}$, s = 2
    """
    name = "plot.singular_vectors"
    _checks.choice(name, "side", side, ("left", "right"))
    U, S, Vh = data.factors(name, a)
    vectors, letter = (U.T, "u") if side == "left" else (Vh, "v")
    k = _checks.static_int(name, "k", k, 1, S.shape[-1])
    length = vectors.shape[1]
    if shape is not None and (len(shape) != 2 or shape[0] * shape[1] != length):
        raise ValueError(
            f"{name}: `shape` must be (rows, columns) of {length} entries in all, got {shape}"
        )
    captions = [f"${letter}_{{{i + 1}}}$, s = {S[i]:.3g}" for i in range(k)]
    with drawing(name, ax) as new:
        if shape is not None:
            most = float(np.abs(vectors[:k]).max())
            look = {"cmap": DIVERGING, "vmin": -most, "vmax": most}
            _tiles(new, ax is None, [v.reshape(shape) for v in vectors[:k]], captions, **look)
            return new
        marker = "o" if length <= 40 else None
        for i in range(k):
            new.plot(
                np.arange(1, length + 1), vectors[i], marker=marker, label=captions[i], **line(i)
            )
        new.axhline(0, color="black", linewidth=0.6)
        whole_numbers(new.xaxis)
        new.set(xlabel=f"entry of the {side} singular vector", ylabel="value, vectors of length 1")
        new.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=min(k, 3))
    return new
