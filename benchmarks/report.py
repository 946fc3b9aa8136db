"""What a run of all suites found, as a page of Markdown with three pictures.

    python -m benchmarks.report RESULTS.json

Writes RESULTS.md and RESULTS-accuracy.png, -size.png, -limit.png beside it: the time of top-k
against its accuracy, the time of a full SVD against its size, and each claim as a multiple of its
bar. `python -m benchmarks` calls it. Claims that miss their bar come first.
"""

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxsvd import plot
from jaxsvd.plot.style import BLUE, PALETTE, VERMILION

Result = dict[str, Any]


def holds(claim: Result) -> bool:
    """Return whether the bar is reached; NaN never does."""
    measured, bar = claim["measured"], claim["bar"]
    return measured >= bar if claim["at_least"] else measured <= bar


def number(x: float | None, digits: int = 3) -> str:
    return "-" if x is None else f"{x:.{digits}g}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a table of Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def claims_table(claims: Iterable[Result]) -> list[str]:
    return table(
        ("case", "figure", "measured", "bar"),
        (
            (
                claim["case"],
                claim["what"],
                number(claim["measured"]),
                ("at least " if claim["at_least"] else "at most ") + number(claim["bar"]),
            )
            for claim in claims
        ),
    )


def rows_table(suite: Result) -> list[str]:
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


def markdown(results: Result, name: str) -> str:
    """Return the page; the pictures stand beside it under the same name."""
    claims = [claim for suite in results["suites"].values() for claim in suite["claims"]]
    missed = [claim for claim in claims if not holds(claim)]
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
        lines += ["## Where the bar is missed", "", *claims_table(missed), ""]
    lines += [
        "## In pictures",
        "",
        f"![Top-k: time against accuracy]({name}-accuracy.png)",
        "",
        f"![Full SVD: time against size]({name}-size.png)",
        "",
        f"![Each claim as a multiple of its bar]({name}-limit.png)",
        "",
    ]
    for key, suite in results["suites"].items():
        lines += [f"## {key}", "", *rows_table(suite), ""]
        if suite["claims"]:
            lines += [*claims_table(suite["claims"]), ""]
    return "\n".join(lines)


def accuracy(suite: Result) -> Figure:
    """Return the time of each contender of top-k against the residual it reached."""
    rows = [r for r in suite["rows"] if r["seconds"] and r["error"]]
    cases = list(dict.fromkeys(r["case"] for r in rows))
    names = list(dict.fromkeys(r["name"] for r in rows))
    figure = Figure(figsize=(3.4 * len(cases), 3.6))
    for axes, case in zip(np.atleast_1d(figure.subplots(1, len(cases))), cases, strict=True):
        for row in (r for r in rows if r["case"] == case):
            colour = PALETTE[names.index(row["name"]) % len(PALETTE)]
            axes.plot(row["seconds"], row["error"], "o", color=colour, label=row["name"])
        axes.set(xscale="log", yscale="log", xlabel="seconds")
        axes.set_title(case.replace(", ", "\n", 1), fontsize=9)
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("error")
    return figure


def size(suite: Result) -> Figure:
    """Return the time of full SVDs of square matrices against their size."""
    figure = Figure()
    axes = figure.subplots()
    found: dict[str, list[tuple[int, float]]] = {}
    for row in suite["rows"]:
        square = re.fullmatch(r"full (\d+) x (\d+)", row["case"])
        if square and square[1] == square[2]:
            found.setdefault(row["name"], []).append((int(square[1]), row["seconds"]))
    for name, points in found.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="m = n", ylabel="seconds")
    axes.set_title("full SVD, float32")
    axes.legend()
    return figure


def limits(results: Result) -> Figure:
    """Return every claim about time as a multiple of its bar: on the right of 1 it holds."""
    claims = [
        claim
        for key in ("topk", "batched")
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
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="multiple of the bar; from 1 on it holds")
    return figure


def write(path: Path) -> None:
    """Write the page and its pictures beside a file of results."""
    results = json.loads(path.read_text())
    path.with_suffix(".md").write_text(markdown(results, path.stem))
    suites = results["suites"]
    with plot.style():
        pictures = {"limit": limits(results)}
        if "topk" in suites:
            pictures["accuracy"] = accuracy(suites["topk"])
        if "batched" in suites:
            pictures["size"] = size(suites["batched"])
        for name, figure in pictures.items():
            target = path.with_name(f"{path.stem}-{name}.png")
            figure.savefig(target, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report")
    parser.add_argument("results", type=Path)
    write(parser.parse_args().results)
