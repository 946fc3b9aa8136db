"""The one style of all pictures: colours told apart with any kind of colour vision, and a context.

matplotlib is an optional package: it is imported here, inside functions, and nowhere else.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import _checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008), "Color universal design".
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#8c8c8c"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)

# Lightness rises along it, so that it reads in grey and with any kind of colour vision.
SEQUENTIAL = "viridis"
DIVERGING = "PuOr"

_DASHES = ("-", "--", ":", "-.")

_SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (5.6, 3.8),
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "image.cmap": SEQUENTIAL,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.dpi": 110,
}


def _matplotlib(name: str) -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f'{name}: needs matplotlib; run pip install "jaxsvd[demo]" to install it'
        ) from error
    return matplotlib


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Lend the style of this package to other pictures; the settings are as before afterwards.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import matplotlib, jaxsvd
        >>> before = dict(matplotlib.rcParams)
        >>> with jaxsvd.plot.style():
        ...     inside = matplotlib.rcParams["axes.spines.top"]
        >>> inside, dict(matplotlib.rcParams) == before
        (False, True)
    """
    matplotlib = _matplotlib("style")
    settings = {**_SETTINGS, "axes.prop_cycle": matplotlib.cycler(color=PALETTE)}
    before = {key: matplotlib.rcParams[key] for key in settings}
    # Not rc_context, which puts back all settings: the first picture of a notebook loads the
    # backend, which makes matplotlib interactive; undone, no later picture would be shown.
    matplotlib.rcParams.update(settings)
    try:
        yield
    finally:
        matplotlib.rcParams.update(before)


@contextlib.contextmanager
def drawing(name: str, ax: Any) -> "Iterator[Axes]":
    """Yield the Axes to draw into, in the style: the given one, or one in a figure of its own."""
    _matplotlib(name)
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"{name}: `ax` must be None or one Axes, got {_checks.describe(ax)}")
    with style():
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
        yield ax


def whole_numbers(axis: Any) -> None:
    """Put the ticks of an axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def line(index: int) -> dict[str, Any]:
    """Return colour and dashes of a curve: 28 that differ."""
    dashes = _DASHES[index // len(PALETTE) % len(_DASHES)]
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": dashes}
