"""What a matrix does to the plane, and to its four subspaces."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .. import _checks, _tolerances
from . import data
from .style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A letter F, whose mirror image is not a rotation of it: a reflection shows.
_LETTER = np.array(
    [[0, 0], [0, 5], [3.4, 5], [3.4, 4], [1, 4], [1, 3], [2.8, 3], [2.8, 2], [1, 2], [1, 0]]
).T
_SHAPE = (_LETTER - np.array([[1.7], [2.5]])) / 4.2

_NAMES = ("$x$", "$V^T x$", "$S V^T x$", "$U S V^T x = A x$")


def _turn(Q: np.ndarray) -> str:
    angle = np.degrees(np.arctan2(Q[1, 0], Q[0, 0]))
    return "reflect" if np.linalg.det(Q) < 0 else f"rotate by {angle:.0f}°"


def _title(step: int, U: np.ndarray, s: np.ndarray, Vh: np.ndarray) -> str:
    words = ("", _turn(Vh), f"stretch by {s[0]:.3g} and {s[1]:.3g}", _turn(U))[step]
    return _NAMES[step] + (f": {words}" if words else ": the unit circle")


def _arrows(ax: "Axes", ends: np.ndarray, words: tuple[str, str]) -> None:
    for end, word, colour in zip(ends.T, words, (VERMILION, GREEN), strict=True):
        look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8}
        ax.annotate("", end, (0, 0), arrowprops={**look, "shrinkA": 0, "shrinkB": 0})
        length = float(np.hypot(*end))
        if length > 0:
            away = end / length
            ax.annotate(
                word, end, 13 * away, textcoords="offset points", color=colour, ha="center",
                va="center",
            )  # fmt: skip


def ellipse(a: Any, *, step: int | None = None, shape: Any = None, ax: Any = None) -> "Axes":
    """Draw what a 2 x 2 matrix does to the unit circle and to a shape.

        A = U S V^T: rotate (or reflect), stretch along the axes, rotate

    The circle becomes an ellipse with half axes s_1 u_1 and s_2 u_2, the images of v_1 and v_2.
    Four calls with ``step`` 0, 1, 2, 3 show the way there; all four have the same limits. The sign
    of the second pair of vectors is chosen so that U is a rotation; V^T is one too for det A >= 0.

    Args:
        a: real matrix (2, 2).
        step: 0, 1, 2 or 3: how many of the factors V^T, S, U have been applied; None draws x and
            A x in one picture.
        shape: (2, p) corners of a polygon to carry along; by default a letter F.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes; the last line is the curve that the circle has become.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: a traced array, a batch, complex or NaN data, another shape.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> ax = jaxsvd.plot.ellipse(jnp.array([[2.0, 0.0], [0.0, 1.0]]), step=2)
        >>> print(ax.get_title())
        $S V^T x$: stretch by 2 and 1
    """
    name = "plot.ellipse"
    a = data.matrix(name, a)
    if a.shape != (2, 2):
        raise ValueError(f"{name}: `a` must have shape (2, 2), got {a.shape}")
    if step is not None:
        step = _checks.static_int(name, "step", step, 0, 3)
    polygon = _SHAPE if shape is None else np.asarray(data.matrix(name, shape, "shape"))
    if polygon.shape[0] != 2:
        raise ValueError(f"{name}: `shape` must have shape (2, p), got {polygon.shape}")
    U, s, Vh = (np.asarray(x, np.float64) for x in data.factors(name, a))
    if np.linalg.det(U) < 0:
        U, Vh = U * [1, -1], Vh * [[1], [-1]]
    stages = (np.eye(2), Vh, s[:, None] * Vh, (U * s) @ Vh)
    around = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(around), np.sin(around)])
    ends = (("$v_1$", "$v_2$"), ("$e_1$", "$e_2$"), ("$s_1 e_1$", "$s_2 e_2$"),
            ("$s_1 u_1$", "$s_2 u_2$"))  # fmt: skip
    shown = (0, 3) if step is None else (step,)
    reach = max(1.0, float(s[0]), *(float(np.abs(M @ polygon).max()) for M in stages))
    with drawing(name, ax) as new:
        if ax is None:
            new.figure.set_size_inches(4.2, 4.2)  # pyright: ignore[reportAttributeAccessIssue]
        for stage in shown:
            before = step is None and stage == 0
            colour = GREY if before else BLUE
            new.fill(*(stages[stage] @ polygon), color=colour, alpha=0.25, linewidth=0)
            curve = stages[stage] @ circle
            new.plot(*curve, color=colour, linestyle="--" if before else "-")
            _arrows(new, stages[stage] @ Vh.T, ends[stage])
        limits = (-1.2 * reach, 1.2 * reach)
        new.set(xlim=limits, ylim=limits, xlabel="first coordinate", ylabel="second coordinate")
        new.set_aspect("equal")
        new.set_title("The circle (dashed) and $A$ times it" if step is None else
                      _title(step, U, s, Vh))  # fmt: skip
    return new


def _box(ax: "Axes", origin: np.ndarray, along: np.ndarray, size: float, colour: str) -> np.ndarray:
    """Draw a rectangle with a corner at the origin; return its corners."""
    from matplotlib.patches import Polygon

    across = 1.3 * along * np.array([-1, 1])
    corners = origin + np.array([0 * along, size * along, size * along + across, across])
    ax.add_patch(Polygon(corners, facecolor=colour, alpha=0.3, edgecolor=BLACK))
    return corners


def _arrow(ax: "Axes", start: np.ndarray, end: np.ndarray, bend: float) -> None:
    look = {"arrowstyle": "-|>", "color": BLACK, "connectionstyle": f"arc3,rad={bend}"}
    ax.annotate("", tuple(end), tuple(start), arrowprops=look)


def subspaces(a: Any, *, rtol: float | None = None, ax: Any = None) -> "Axes":
    """Draw the four subspaces of a matrix, their dimensions, and what the matrix does to them.

        R^n = row space (v_1 ... v_r) + null space
        R^m = column space (u_1 ... u_r) + left null space

    A takes v_i to s_i u_i and the null space to zero. The sides of the boxes are in proportion to
    the dimensions; a subspace of dimension 0 has no box.

    Args:
        a: matrix (m, n), real or complex.
        rtol: singular values up to rtol s_1 count as zero; by default as in `linalg.matrix_rank`.
        ax: Axes to draw into; by default those of a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: a traced array, a batch, NaN, ``rtol`` out of range.

    Example:
        >>> import jax.numpy as jnp, jaxsvd
        >>> ax = jaxsvd.plot.subspaces(jnp.ones((3, 2)))
        >>> print([text.get_text() for text in ax.texts if "dim" in text.get_text()])
        ['row space, dim 1', 'null space, dim 1', 'column space, dim 1', 'left null space, dim 2']
    """
    name = "plot.subspaces"
    a = data.matrix(name, a, real=False)
    rtol = _checks.tolerance(name, "rtol", rtol)
    s = data.values(name, a)
    m, n = a.shape
    cut = _tolerances.rank_tol(s.dtype, m, n) if rtol is None else rtol
    r = int(np.sum(s > cut * s[0]))
    unit = 3.0 / max(m, n)  # the length of a box for each dimension
    left, right = np.array([-2.6, 0.0]), np.array([2.6, 0.0])
    slant = np.sqrt(0.5)
    boxes = (
        ("row space", left, (-slant, slant), r, BLUE),
        ("null space", left, (-slant, -slant), n - r, ORANGE),
        ("column space", right, (slant, slant), r, BLUE),
        ("left null space", right, (slant, -slant), m - r, PURPLE),
    )
    field = "C" if jnp.iscomplexobj(a) else "R"
    with drawing(name, ax) as new:
        if ax is None:
            new.figure.set_size_inches(7.0, 4.4)  # pyright: ignore[reportAttributeAccessIssue]
        middles = []
        for word, origin, along, dimension, colour in boxes:
            corners = origin[None]
            if dimension:
                corners = _box(new, origin, np.array(along), unit * dimension, colour)
            middles.append(corners.mean(axis=0))
            high = corners[np.argmax(np.abs(corners[:, 1]))] + np.array(
                [0, 0.3 * np.sign(along[1])]
            )
            new.text(*high, f"{word}, dim {dimension}", ha="center", va="center")
        for origin, size in ((left, n), (right, m)):
            new.plot(*origin, "o", color=BLACK)
            new.text(origin[0], 4.0, f"$\\mathbf{{{field}}}^{{{size}}}$", ha="center", fontsize=13)
        if r:
            _arrow(new, middles[0], middles[2], -0.15)
            new.text(0, 2.0, "$A v_i = s_i u_i$", ha="center")
            listed = ", ".join(f"{x:.3g}" for x in s[: min(r, 4)]) + (", ..." if r > 4 else "")
            new.text(0, 1.0, f"$s_i$ = {listed}", ha="center", color=GREY, fontsize=9)
        if n > r:
            _arrow(new, middles[1], right, 0.15)
            new.text(0, -1.5, "$A x = 0$", ha="center")
        new.set(xlim=(-5.6, 5.6), ylim=(-3.7, 4.5))
        new.set_aspect("equal")
        new.axis("off")
    return new
