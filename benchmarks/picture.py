"""The picture at the top of the README: one gradient at a tie, and its error near it.

    python -m benchmarks.picture [PATH]

Writes docs/pictures/gradient.png. Fails if the picture would not be true: NaN on the left, right
numbers beside it.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxsvd import plot
from jaxsvd.cli.demo import draw_tie
from jaxsvd.cli.experiments import Tie, differentiate_tie
from jaxsvd.plot.style import GREY

PATH = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "gradient.png"


def _entries(axes, gradient: np.ndarray, exact: np.ndarray, title: str) -> None:
    """Draw a matrix with its numbers, grey where it holds none."""
    top = np.abs(exact).max()
    axes.imshow(gradient, cmap="PuOr", vmin=-1.5 * top, vmax=1.5 * top)
    axes.set_facecolor(GREY)
    for (i, j), value in np.ndenumerate(gradient):
        words = f"{value:.2f}" if np.isfinite(value) else "NaN"
        colour = "black" if np.isfinite(value) else "white"
        axes.text(j, i, words, ha="center", va="center", color=colour, fontsize=11)
    axes.set_title(title)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)


def picture(tie: Tie) -> Figure:
    """Return the picture of a gradient."""
    with plot.style():
        figure = Figure(figsize=(10.5, 3.5))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.9))
        for axes, name in ((left, "jnp.linalg.svd"), (middle, "jaxsvd.svd")):
            _entries(axes, np.asarray(tie.found[name]), tie.exact, f"gradient by\n{name}")
        draw_tie(tie, right)
        right.set_title("its error as two singular values meet, float32")
    return figure


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    tie = differentiate_tie()
    assert np.isnan(tie.found["jnp.linalg.svd"]).all()
    assert np.allclose(tie.found["jaxsvd.svd"], tie.exact, rtol=1e-5, atol=1e-5)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(tie).savefig(path, dpi=100, metadata={"Software": None})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
