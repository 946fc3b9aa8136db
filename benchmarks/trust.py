"""Trials: the tests of LAPACK, hard cases, faults and extremes, in one table.

    python -m benchmarks.trust [--quick] [--only WORD ...] [--write] [--from-results]

A trial is a function (quick) -> rows (`benchmarks.trials`) in TRIALS. `--write` puts the rows of
the trials that ran into benchmarks/results/trust.json, beside those of earlier runs of others, and
the whole table into the README. Exit code 1 if a case fails that has no reason beside it.
"""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax

from .fuzz import fuzzing
from .hard import hard
from .lapack import lapack
from .longrun import long_runs
from .measure import hardware, versions
from .mutations import planted_faults
from .trials import Failure, Row

MARKERS = ("<!-- trust:begin -->", "<!-- trust:end -->")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "trust.json"

# Each is called with whether it shall be quick and yields rows, their names its own.
TRIALS: list[Callable[[bool], Iterable[Row]]] = [
    lapack,
    hard,
    fuzzing,
    long_runs,
    planted_faults,
]


def number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}"


def markdown(rows: Iterable[Row], date: str, machine: str) -> str:
    """Return the table, and below it each failure with its reason."""
    lines = [
        f"`python -m benchmarks.trust` writes it ({date}, {machine}).",
        "",
        "| trial | cases | worst ratio | bar | failures |",
        "|---|---|---|---|---|",
    ]
    failures = []
    for row in rows:
        name = f"{row.trial}: {row.note}" if row.note else row.trial
        worst, bar = number(row.worst), number(row.bar)
        lines.append(f"| {name} | {row.cases} | {worst} | {bar} | {len(row.failures)} |")
        failures += [
            f"- {row.trial}, {f.case}: {f.found}. {f.reason or 'Not explained.'}"
            for f in row.failures
        ]
    return "\n".join(lines + ([""] + failures if failures else []))


def load() -> dict[str, dict]:
    """Return the rows of earlier runs by trial, as they are stored."""
    if not RESULTS.exists():
        return {}
    return {row["trial"]: row for row in json.loads(RESULTS.read_text())["rows"]}


def store(rows: Iterable[Row]) -> None:
    """Write rows beside those of other trials; the order is that of the trials' first runs."""
    today = datetime.date.today().isoformat()
    stored = load()
    for row in rows:
        failures = [failure._asdict() for failure in row.failures]
        stored[row.trial] = row._asdict() | {"failures": failures, "date": today}
    content = {"hardware": hardware(), "versions": versions(), "rows": list(stored.values())}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def from_results() -> tuple[list[Row], str, str]:
    """Return all stored rows, the date of the oldest of them, and the machine."""
    content = json.loads(RESULTS.read_text())
    dates = [row.pop("date") for row in content["rows"]]
    rows = [
        Row(**row | {"failures": tuple(Failure(**failure) for failure in row["failures"])})
        for row in content["rows"]
    ]
    return rows, min(dates), content["hardware"]


def run(quick: bool, words: list[str] | None = None) -> Iterator[Row]:
    """Yield the rows of the trials whose name holds one of the words, or of all."""
    for trial in TRIALS:
        if words and not any(word in trial.__name__ for word in words):
            continue
        start = time.perf_counter()
        for row in trial(quick):
            seconds = time.perf_counter() - start
            print(
                f"{row.trial}: {row.cases} cases, worst {number(row.worst)}, "
                f"{len(row.failures)} failures ({seconds:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
            yield row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust")
    parser.add_argument("--quick", action="store_true", help="a subset of the cases")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="trials with a word in the name")
    parser.add_argument("--write", action="store_true", help="store the rows, update the README")
    parser.add_argument("--from-results", action="store_true", help=f"compute nothing: {RESULTS}")
    arguments = parser.parse_args()
    if arguments.quick and arguments.write:
        parser.error("--write stores full trials only")
    if arguments.from_results:
        rows, date, machine = from_results()
    else:
        jax.config.update("jax_enable_x64", True)
        rows = []
        for row in run(arguments.quick, arguments.only):
            rows.append(row)
            if arguments.write:  # at once: a later trial may take an hour, or be stopped
                store([row])
        date, machine = datetime.date.today().isoformat(), hardware()
    if arguments.write:
        from .derivatives import update

        update(ROOT / "README.md", markdown(*from_results()), MARKERS)
    print(markdown(rows, date, machine))
    return 1 if any(not f.reason for row in rows for f in row.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
