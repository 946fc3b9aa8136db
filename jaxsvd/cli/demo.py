"""`python -m jaxsvd demo`: the table, the checks and the picture of the three experiments."""

import importlib.util
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..plot.data import tails
from ..plot.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from .experiments import (
    GAPS,
    RANKS,
    Digits,
    K,
    Photo,
    Tie,
    compress_photo,
    differentiate_tie,
    learn_digits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = 100
_NEEDED = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm", "PIL": "pillow"}

_DIGITS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, "black", "#882255", "#999933", GREY)
_CHANNELS = (("red", VERMILION, "-"), ("green", GREEN, "--"), ("blue", BLUE, ":"))
_FUNCTIONS = {
    "jnp.linalg.svd": (VERMILION, "s", 5),
    "jaxsvd.svd": (SKY, "^", 9),
    "jaxsvd.core_svd": (BLUE, "o", 4),
}


class Refused(ValueError):
    """The demo cannot start; the message is the sentence for the user."""


def _relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def failures(digits: Digits, photo: Photo, tie: Tie, steps: int) -> Iterator[str]:
    """Yield a sentence for each result that is not what it should be."""
    if not abs(digits.slope / digits.slope_difference - 1) < 1e-2:
        yield "digits: the gradient of the loss disagrees with a finite difference"
    if not digits.losses[1] < digits.losses[0]:
        yield "digits: the loss did not fall"
    if steps >= STEPS and not digits.held_out[1] > digits.held_out[0]:
        yield "digits: the accuracy on held-out digits did not rise"
    if not np.allclose(photo.measured, photo.promised, rtol=1e-4, atol=1e-6):
        yield "photograph: the measured error is not that of Eckart and Young"
    for name in ("jaxsvd.svd", "jaxsvd.core_svd"):
        if not np.allclose(tie.found[name], tie.exact, rtol=1e-5, atol=1e-5):
            yield f"gradient: {name} is not exact at the repeated singular value"
    if not (tie.errors["jaxsvd.core_svd"] < 1e-5).all():
        yield "gradient: jaxsvd.core_svd is not exact near the repeated singular value"


def table(digits: Digits, photo: Photo, tie: Tie, steps: int) -> str:
    """Return the figures as text."""
    old, new = digits.held_out
    learned, held = digits.counts
    lines = [
        f"1  Handwritten digits: 64 pixel weights, learned through {K} singular vectors "
        f"({steps} steps of Adam)",
        f"   {'':34}{'before':>10}{'after':>10}",
        f"   {'loss':34}{digits.losses[0]:>10.3f}{digits.losses[1]:>10.3f}",
        f"   {f'accuracy on {learned} training digits':34}"
        f"{digits.training[0]:>10.1%}{digits.training[1]:>10.1%}",
        f"   {f'accuracy on {held} held-out digits':34}{old:>10.1%}{new:>10.1%}"
        f"   {100 * (new - old):+.1f} points; all 64 pixels: {digits.all_pixels:.1%}",
        f"   slope of the loss along its gradient {digits.slope:.4f}, "
        f"by a finite difference {digits.slope_difference:.4f}",
        "",
        f"2  A photograph, {' x '.join(map(str, photo.picture.shape))}: the SVD of each channel; "
        "errors relative to |A|_F",
        f"   {'rank':>6}{'storage':>11}{'Eckart-Young error':>20}{'measured':>13}{'PSNR/dB':>10}",
    ]
    columns = (RANKS, photo.storage, photo.promised, photo.measured, photo.psnr)
    lines += [
        f"   {r:>6}{storage:>11.1%}{promised:>20.6f}{measured:>13.6f}{psnr:>10.1f}"
        for r, storage, promised, measured, psnr in zip(*columns, strict=True)
    ]
    lines += [
        "",
        "3  One gradient at singular values 2, 2, 1, 1/2: the energy of a vector in the top two",
        f"   {'':18}{'entry [2, 0]':>14}{'error at the tie':>19}{'worst error near it':>22}",
        f"   {'exact':18}{tie.exact[2, 0]:>14.6f}",
    ]
    lines += [
        f"   {name:18}{found[2, 0]:>14.6f}{_relative(found, tie.exact):>19.1e}"
        f"{np.max(tie.errors[name]):>22.1e}"
        for name, found in tie.found.items()
    ]
    lines += [
        f"   (near it: gaps of {GAPS[0]:.0e} to {GAPS[-1]:.0e}, where svd divides by the gap and "
        "core_svd does not)"
    ]
    return "\n".join(lines)


def _draw_digits(d: Digits, weights: "Axes", before: "Axes", after: "Axes", bars: "Axes") -> None:
    powers = np.where(d.constant, np.nan, np.log2(d.weights)).reshape(8, 8)
    image = weights.imshow(powers, cmap="PuOr", vmin=-2, vmax=2)
    weights.set(title="Learned pixel weights\n(grey: always blank)", facecolor="#999999")
    weights.set(xlabel="pixel column", ylabel="pixel row", xticks=range(8), yticks=range(8))
    bar = weights.figure.colorbar(
        image, ax=weights, shrink=0.85, extend="both", label="weight, 1 at the start"
    )
    bar.set_ticks(range(-2, 3), labels=["1/4", "1/2", "1", "2", "4"])
    for axes, points, word, accuracy in zip(
        (before, after), d.points, ("before", "after"), d.held_out, strict=True
    ):
        for digit, colour in enumerate(_DIGITS):
            x, y = points[d.labels == digit][:40, :2].T
            axes.scatter(x, y, s=26, marker=f"${digit}$", color=colour, linewidths=0.3)
        axes.set(xlabel="1st singular coordinate", ylabel="2nd singular coordinate")
        axes.set_title(f"Held-out digits {word}\n{accuracy:.1%} right in {K} coordinates")
    rows = np.arange(10)
    bars.hlines(rows, d.by_digit[0], d.by_digit[1], color=GREY, linewidth=2)
    for values, colour, marker, word in zip(
        d.by_digit, (ORANGE, BLUE), "so", ("before", "after"), strict=True
    ):
        bars.plot(values, rows, marker, color=colour, label=word)
    bars.set(title="Held-out accuracy\nof each digit", xlabel="share right", ylabel="digit")
    bars.set(yticks=rows, ylim=(9.6, -0.6), xlim=(None, 1.02))
    bars.legend(loc="upper left")


def _draw_photo(p: Photo, pictures: "list[Axes]", spectrum: "Axes", errors: "Axes") -> None:
    pictures[0].imshow(p.picture)
    pictures[0].set_title("Photograph")
    for axes, i in zip(pictures[1:], (0, 1, len(RANKS) - 1), strict=True):
        axes.imshow(p.compressed[i])
        axes.set_title(f"Rank {RANKS[i]}: {p.storage[i]:.0%} of the numbers, {p.psnr[i]:.1f} dB")
    for axes in pictures:
        axes.axis("off")
    for (name, colour, style), s in zip(_CHANNELS, p.values, strict=True):
        spectrum.loglog(np.arange(1, len(s) + 1), s, style, color=colour, label=name)
    spectrum.set(title="Singular values of the photograph", xlabel="index", ylabel="value")
    spectrum.legend(title="channel")
    promised = tails(np.sqrt((p.values**2).sum(axis=0)))[1:-1]  # of all channels together
    errors.semilogy(np.arange(1, len(promised) + 1), promised, color=BLUE, label="Eckart-Young")
    errors.plot(RANKS, p.measured, "o", color=ORANGE, markeredgecolor="black", label="measured")
    errors.set(title="Error of the compressed photograph", xlabel="rank")
    errors.set_ylabel("relative error (Frobenius)")
    errors.legend()


def draw_tie(tie: Tie, axes: "Axes") -> None:
    """Draw the error of each gradient against the gap, and what it is at a gap of zero."""
    at_zero = GAPS[-1] / 10  # where a gap of 0 is drawn
    for name, (colour, marker, size) in _FUNCTIONS.items():
        style = {"marker": marker, "color": colour, "markersize": size}
        axes.loglog(GAPS, tie.errors[name], label=name, **style)
        error = _relative(tie.found[name], tie.exact)
        if np.isfinite(error):
            axes.plot(at_zero, max(error, 2e-8), **style)
        else:
            axes.plot(at_zero, 3, "x", color=colour, markersize=9, markeredgewidth=2.5)
            axes.annotate("NaN", (at_zero, 3), (9, -4), textcoords="offset points", color=colour)
    axes.axvline(at_zero * 10**0.5, color=GREY, linewidth=0.8, linestyle=":")
    powers = [f"$10^{{{power:.0f}}}$" for power in np.log10(GAPS[::4])]
    axes.set_xticks([at_zero, *GAPS[::4]], ["0", *powers])
    axes.minorticks_off()
    axes.set(ylim=(1e-8, 20), xlabel="gap between two singular values near 2")
    axes.set(title="Error of a float32 gradient", ylabel="relative error")
    axes.legend(loc="upper right")


def picture(digits: Digits, photo: Photo, tie: Tie) -> bytes:
    """Return the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 12.5), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(3, 1, height_ratios=(1.15, 0.85, 1.1), hspace=0.03)
    top, middle, bottom = parts
    left, right = bottom.subfigures(1, 2, width_ratios=(2, 1))
    for part, words in (
        (top, "1  Learning through singular vectors: pixel weights that separate the digits"),
        (middle, "2  Compression: a photograph at several ranks"),
        (left, "    Its singular values, and its error measured and promised"),
        (right, "3  A gradient at and near a tie"),
    ):
        part.suptitle(words, x=0.01, ha="left", fontsize=14, fontweight="bold")
    above = cast("list[Axes]", top.subplots(1, 4, width_ratios=(1, 1.25, 1.25, 0.9)))
    below = cast("list[Axes]", left.subplots(1, 2))
    _draw_digits(digits, *above)
    _draw_photo(photo, list(middle.subplots(1, 4)), *below)
    draw_tie(tie, right.subplots())
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _check_request(output: Path, steps: int) -> None:
    """Raise before any work is done if the demo could not finish."""
    if steps < 1:
        raise Refused(f"--steps must be 1 or more, got {steps}")
    missing = [package for name, package in _NEEDED.items() if not importlib.util.find_spec(name)]
    if missing:
        raise ImportError(
            f'the demo needs {", ".join(missing)}; run pip install -e ".[demo]" to install '
            "what is missing"
        )
    if output.suffix.lower() != ".png":
        raise Refused(f"--output must be the name of a .png file, got {str(output)!r}")
    if output.is_dir() or not output.parent.is_dir():
        raise Refused(f"--output must be a file in a folder that exists, got {str(output)!r}")
    if not os.access(output if output.exists() else output.parent, os.W_OK):
        raise Refused(f"--output must be a file that may be written, got {str(output)!r}")


def run(output: Path, steps: int, headline: str) -> int:
    """Run the experiments, print the table, write the picture; return 1 if a check failed."""
    _check_request(output, steps)
    started = time.perf_counter()
    print(headline, flush=True)
    results = learn_digits(steps), compress_photo(), differentiate_tie()
    print(f"\n{table(*results, steps)}\n")
    try:
        output.write_bytes(picture(*results))
    except OSError as error:
        raise Refused(f"{str(output)!r} cannot be written: {error.strerror}") from error
    failed = list(failures(*results, steps))
    for sentence in failed:
        print(f"FAILED  {sentence}")
    count = f"{len(failed)} check{'s' * (len(failed) > 1)} failed"
    verdict = count if failed else "all checks passed"
    print(f"{verdict}; picture in {output}; {time.perf_counter() - started:.1f} s in total")
    return 1 if failed else 0
