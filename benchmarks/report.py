"""What a run of all suites found, as a page of Markdown with three pictures.

    python -m benchmarks.report RESULTS.json

Writes RESULTS.md and RESULTS-accuracy.png, -size.png, -limit.png beside it: the time of top-k
against its accuracy, the time of a full SVD against its size, and each claim as a multiple of its
bar. `python -m benchmarks` calls it. Claims that miss their bar come first.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jaxsvd import plot
from jaxsvd.plot.style import BLUE, PALETTE, VERMILION

from .measure import Claim

Result = dict[str, Any]

# The suites whose every claim is about time.
TIMED = ("topk", "batched", "accelerator")


def number(x: float | None, digits: int = 3) -> str:
    """Return a few digits, or a dash."""
    return "-" if x is None else f"{x:.{digits}g}"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table of Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def claims_table(claims: Iterable[Result]) -> str:
    """Return the figures against their bars."""
    return table(
        ("case", "figure", "measured", "bar", "holds"),
        (
            (
                claim["case"],
                claim["what"],
                number(claim["measured"]),
                ("at least " if claim["at_least"] else "at most ") + number(claim["bar"]),
                "yes" if Claim(**claim).holds else "no",
            )
            for claim in claims
        ),
    )


def rows_table(suite: Result) -> str:
    """Return all rows of a suite."""
    return table(
        ("case", "who", "seconds", "first call, s more", "MB more", suite["error"], "note"),
        (
            (
                row["case"],
                row["name"],
                number(row["seconds"]),
                number(row["compile"], 2),
                "-" if row["memory"] is None else f"{row['memory'] / 1e6:.0f}",
                number(row["error"], 2),
                row["note"] or "",
            )
            for row in suite["rows"]
        ),
    )


def markdown(results: Result, shown: list[str]) -> str:
    """Return the page with the lines of its pictures."""
    claims = [claim for suite in results["suites"].values() for claim in suite["claims"]]
    missed = [claim for claim in claims if not Claim(**claim).holds]
    versions = ", ".join(f"{key} {x}" for key, x in results["versions"].items())
    lines = [
        f"# Benchmarks on {results['hardware']}",
        "",
        f"`python -m benchmarks` wrote this page. {versions}. Times are medians of calls that take",
        "turns within one process, compilation apart: only their ratios mean something elsewhere.",
        "",
        f"{len(claims) - len(missed)} of {len(claims)} figures reach their bar.",
        "",
    ]
    if missed:
        lines += ["## Where the bar is missed", "", claims_table(missed), ""]
    lines += shown
    for key, suite in results["suites"].items():
        lines += [f"## {key}, {suite['date']}", "", rows_table(suite), ""]
        if suite["claims"]:
            lines += [claims_table(suite["claims"]), ""]
    return "\n".join(lines)


def logarithmic(axes: Any) -> None:
    """Make the horizontal axis logarithmic, with ticks at 1, 2 and 5."""
    axes.set_xscale("log")
    axis = axes.xaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def accuracy(results: Result) -> Figure:
    """Return the time of each contender of top-k against the residual it reached."""
    rows = [
        row
        for row in results["suites"]["topk"]["rows"]
        if row["seconds"] and row["error"] and "10 products" not in row["case"]
    ]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    names = list(dict.fromkeys(r["name"] for r in rows))
    figure = Figure(figsize=(3.4 * len(cases), 3.6))
    panels = np.atleast_1d(figure.subplots(1, len(cases), sharey=True))
    for axes, case in zip(panels, cases, strict=True):
        for row in (r for r in rows if r["case"] == case):
            colour = PALETTE[names.index(row["name"]) % len(PALETTE)]
            axes.plot(row["seconds"], row["error"], "o", color=colour, label=row["name"])
        logarithmic(axes)
        axes.set(yscale="log", xlabel="seconds")
        axes.set_title(case.replace(", ", "\n", 1), fontsize=9)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel(results["suites"]["topk"]["error"].split(";")[0])
    return figure


def size(results: Result) -> Figure:
    """Return the time of full SVDs of square matrices against their size."""
    figure = Figure()
    axes = figure.subplots()
    found: dict[str, list[tuple[int, float]]] = {}
    for row in results["suites"]["batched"]["rows"]:
        square = re.fullmatch(r"full (\d+) x (\d+)", row["case"])
        if square and square[1] == square[2]:
            found.setdefault(row["name"], []).append((int(square[1]), row["seconds"]))
    for name, points in found.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    logarithmic(axes)
    axes.set(yscale="log", xlabel="m = n", ylabel="seconds")
    axes.set_title("full SVD, float32")
    axes.legend()
    return figure


def limits(results: Result) -> Figure:
    """Return every claim about time as a multiple of its bar: on the right of 1 it holds."""
    claims = [
        claim
        for key in TIMED
        for claim in results["suites"].get(key, {"claims": []})["claims"]
        if "residual" not in claim["what"] and "bits" not in claim["what"]
    ]
    share = [
        claim["measured"] / claim["bar"] if claim["at_least"] else claim["bar"] / claim["measured"]
        for claim in claims
    ]
    figure = Figure(figsize=(8, 1 + 0.24 * len(claims)))
    axes = figure.subplots()
    axes.barh(range(len(claims)), share, color=[BLUE if x >= 1 else VERMILION for x in share])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(claims)), [f"{c['case']}: {c['what']}" for c in claims], fontsize=7)
    logarithmic(axes)
    axes.set(xlabel="multiple of the bar; from 1 on it holds", ylim=(len(claims) - 0.5, -0.5))
    return figure


PICTURES = {
    "accuracy": (("topk",), "top-k: time against accuracy", accuracy),
    "size": (("batched",), "full SVD: time against size", size),
    "limit": (TIMED, "each figure as a multiple of its bar", limits),
}


def pictures(results: Result) -> Iterator[tuple[str, str, Figure]]:
    """Yield (name, words, picture) of what the suites that ran can show."""
    for name, (suites, words, draw) in PICTURES.items():
        if any(results["suites"].get(suite, {"rows": []})["rows"] for suite in suites):
            with plot.style():
                yield name, words, draw(results)


def write(path: Path) -> None:
    """Write the page and its pictures beside a file of results."""
    results = json.loads(path.read_text())
    shown = []
    for name, words, figure in pictures(results):
        target = path.with_name(f"{path.stem}-{name}.png")
        with plot.style():
            figure.savefig(target, dpi=90, metadata={"Software": None})
        shown += [f"![{words}]({target.name})", ""]
    path.with_suffix(".md").write_text(markdown(results, shown))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("results", type=Path)
    write(parser.parse_args().results)
