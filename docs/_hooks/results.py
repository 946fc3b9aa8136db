"""The benchmarks page: tables and plots of every file in benchmarks/results, made at build time."""

import io
import json
import statistics
import sys
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from jaxsvd import plot
from jaxsvd.plot.style import BLUE, GREY, ORANGE, VERMILION, line

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks is no part of what is installed

from benchmarks import report  # noqa: E402
from benchmarks.report import table  # noqa: E402

FOLDER = ROOT / "benchmarks" / "results"
INTRODUCTION = """# Benchmarks

Everything on this page is made from the files in `benchmarks/results` when the site is built. They
are written by `python -m benchmarks` (speed, accuracy, gradients, norms; times are medians of calls
that take turns, so ratios carry over to another machine and seconds do not),
`python -m benchmarks.derivatives`, and the trials of their own that each section names.

"""
ORDERS = {1: "first derivatives", 2: "second derivatives"}
RIGHT, WRONG, NAN, RAISES, UNDEFINED = "right", "wrong", "NaN", "raises", "not representable"


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _number(x) -> str:
    if isinstance(x, bool):
        return "yes" if x else "no"
    return f"{x:.3g}" if isinstance(x, float) else "" if x is None else str(x)


# ------------------------------------------------------------------------------- derivatives


def _outcome(value, bar: float) -> str:
    words = {"nan": NAN, "raises": RAISES, "not representable": UNDEFINED}
    return words[value] if isinstance(value, str) else RIGHT if value <= bar else WRONG


def _counted(content: dict) -> dict:
    """Return the outcomes by (library, order, matrix)."""
    counts: dict = {}
    for cell in content["cells"]:
        name = cell["matrix"]
        dtype = "float32" if name.startswith("float32") else "float64"
        for value in cell.values():
            if isinstance(value, list):
                for library, outcome in zip(content["libraries"], value, strict=True):
                    key = library, cell["order"], name
                    counts.setdefault(key, Counter())[
                        _outcome(outcome, content["bars"][dtype])
                    ] += 1
    return counts


def _derivatives(stem: str, content: dict, files: dict) -> str:
    counts = _counted(content)
    matrices = list(dict.fromkeys(cell["matrix"] for cell in content["cells"]))
    libraries = content["libraries"]

    def total(library: str, order: int) -> Counter:
        return sum((counts[library, order, name] for name in matrices), Counter())

    def share(count: Counter) -> str:
        defined = sum(count.values()) - count[UNDEFINED]
        return f"{count[RIGHT]}/{defined}" if defined else ""

    with plot.style():
        figure = Figure(figsize=(8, 3))
        colours = {RIGHT: BLUE, WRONG: ORANGE, NAN: VERMILION, RAISES: GREY}
        for axes, order in zip(figure.subplots(1, 2, sharey=True), ORDERS, strict=True):
            left = [0] * len(libraries)
            for kind, colour in colours.items():
                found = [total(library, order)[kind] for library in libraries]
                axes.barh(libraries, found, left=left, label=kind, color=colour)
                left = [a + b for a, b in zip(left, found, strict=True)]
            axes.set(title=ORDERS[order], xlabel="cells: a loss, a matrix, a way to differentiate")
            axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        files[f"benchmarks/{stem}.svg"] = _svg(figure)
    rows = [
        [name, *(share(counts[library, order, name]) for order in ORDERS for library in libraries)]
        for name in matrices
    ]
    rows.append(
        ["all", *(share(total(library, order)) for order in ORDERS for library in libraries)]
    )
    header = [
        "matrix",
        *(f"{library}, {ORDERS[o].split()[0]}" for o in ORDERS for library in libraries),
    ]
    return "\n\n".join(
        [
            f"![how many derivatives are right, by library]({stem}.svg)",
            "Right to the bars "
            + ", ".join(f"{bar:g} ({dtype})" for dtype, bar in content["bars"].items())
            + ", of all cells whose derivative exists; the exact ones come from mpmath.",
            table(header, rows),
        ]
    )


# ------------------------------------------------------------------------------- compression


def _compression(stem: str, content: dict, files: dict) -> str:
    seeds = content["seeds"]
    keys = [key for key in seeds[0] if key[0].isdigit()]
    budgets = sorted({key.split(" ", 1)[0] for key in keys}, reverse=True)
    methods = list(dict.fromkeys(key.split(" ", 1)[1] for key in keys))
    means = {key: statistics.mean(seed[key] for seed in seeds) for key in keys}
    dense = statistics.mean(seed["dense"] for seed in seeds)
    with plot.style():
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
        for index, method in enumerate(methods):
            y = [means[f"{budget} {method}"] for budget in budgets]
            axes.plot([100 * float(b) for b in budgets], y, marker="o", label=method, **line(index))
        axes.axhline(dense, color="black", linewidth=0.8, linestyle=":")
        axes.set(
            xlabel="parameters kept / %", ylabel="loss on held-out text / (nats per character)"
        )
        axes.legend(fontsize=8)
        files[f"benchmarks/{stem}.svg"] = _svg(figure)
    rows = [[m, *(f"{means[f'{b} {m}']:.3f}" for b in budgets)] for m in methods]
    return "\n\n".join(
        [
            f"![loss against parameters kept]({stem}.svg)",
            f"Means of {len(seeds)} seeds; the trained model has {dense:.3f} (dotted).",
            table(["method", *(f"{100 * float(b):.0f} % kept" for b in budgets)], rows),
        ]
    )


# ------------------------------------------------------------------------------------ suites


def _suite(stem: str, name: str, suite: dict, files: dict) -> str:
    rows = [row for row in suite["rows"] if row.get("seconds")]
    parts = [f"### {name}"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    if cases:
        names = list(dict.fromkeys(row["name"] for row in rows))
        with plot.style():
            figure = Figure(figsize=(8, 1.2 + 0.3 * len(cases)))
            axes = figure.subplots()
            for index, contender in enumerate(names):
                mine = [row for row in rows if row["name"] == contender]
                x, y = [row["seconds"] for row in mine], [cases.index(row["case"]) for row in mine]
                look = {**line(index), "linestyle": "none"}
                axes.plot(x, y, "o^sDvP*X"[index % 8], markersize=6, label=contender, **look)
            axes.set_yticks(range(len(cases)), cases, fontsize=7)
            axes.set(
                xscale="log", xlabel="median time of a call / s", ylim=(len(cases) - 0.5, -0.5)
            )
            axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
            path = f"{stem}-{name}.svg"
            files[f"benchmarks/{path}"] = _svg(figure)
        parts.append(f"![times of {name}]({path})")
    columns = ["case", "name", "seconds", "compile", "memory", "error", "note"]
    shown = [[_number(row.get(column)) for column in columns] for row in suite["rows"]]
    header = ["case", "who", "s", "compiling, s", "bytes", suite.get("error", "error"), "note"]
    summary = "<summary>All figures</summary>"
    inside = f"{summary}\n\n{table(header, shown)}"
    parts.append(f'<details markdown="1">\n{inside}\n\n</details>')
    if suite["claims"]:
        parts.append(report.claims_table(suite["claims"]))
    return "\n\n".join(parts)


def _suites(stem: str, content: dict, files: dict) -> str:
    parts = [f"Measured on: {content['hardware']}."]
    for name, words, figure in report.pictures(content):
        files[f"benchmarks/{stem}-{name}.svg"] = _svg(figure)
        parts.append(f"![{words}]({stem}-{name}.svg)")
    return "\n\n".join([*parts, *(_suite(stem, n, s, files) for n, s in content["suites"].items())])


# ------------------------------------------------------------------------------------- pages


def _listed(rows: list[dict]) -> str:
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    return table(columns, [[_number(row.get(c)) for c in columns] for row in flat])


TITLES = {
    "derivatives": "Derivatives of the SVD",
    "derivatives_hermitian": "Derivatives of Hermitian matrices",
    "compression": "A transformer made smaller",
    "trust": "Trust",
    "mutations": "Faults that the tests must see",
}


def _section(path: Path, files: dict) -> str:
    content = json.loads(path.read_text())
    parts = [f"## {TITLES.get(path.stem, path.stem)}"]
    if isinstance(content, list):
        parts.append(_listed(content))
    elif "cells" in content:
        parts.append(_derivatives(path.stem, content, files))
    elif "seeds" in content:
        parts.append(_compression(path.stem, content, files))
    elif "suites" in content:
        parts.append(_suites(path.stem, content, files))
    elif "rows" in content:
        parts.append(_listed(content["rows"]))
    if isinstance(content, dict) and "versions" in content:
        used = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        parts.append(f"Versions: {used}.")
    files[f"benchmarks/{path.name}"] = path.read_text()
    parts.append(f"All of it: [{path.name}]({path.name}).")
    return "\n\n".join(parts)


def pages() -> dict:
    """Return the page and its pictures by path in the site."""
    files: dict = {}
    order = {name: index for index, name in enumerate(TITLES)}
    paths = sorted(FOLDER.glob("*.json"), key=lambda p: (order.get(p.stem, len(order)), p.stem))
    sections = [_section(path, files) for path in paths]
    files["benchmarks/index.md"] = INTRODUCTION + "\n\n".join(sections) + "\n"
    return files
