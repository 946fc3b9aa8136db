"""All suites, one after the other: tables, claims against their bars, and a file of results.

    python -m benchmarks [--quick] [--suite NAME ...] [--json PATH]

Writes benchmarks/results/<hardware>.json, beside what earlier runs of other suites left there, and
a page of Markdown with pictures (with --quick nothing, unless --json says where). Exit code 1 if a
claim does not hold. Run nothing else beside it. `python -m benchmarks.derivatives` is apart: it
compares numbers, not times.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import sys
import time
from pathlib import Path

from . import report
from .measure import hardware, show, versions

RESULTS = Path(__file__).parent / "results"
SUITES = (
    "topk",
    "batched",
    "router",
    "accelerator",
    "accuracy",
    "gradients",
    "firstcall",
    "errorbars",
    "norms",
    "lipschitz",
    "outofcore",
    "models",
    "completion",
    "recommender",
    "lora",
    "compression",
    "compress",
    "safe",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, five minutes in all")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only these")
    parser.add_argument("--json", help="where the results go")
    args = parser.parse_args(argv)
    found = {}
    for name in args.suite or SUITES:
        start = time.perf_counter()
        print(f"\n=== {name}", flush=True)
        found[name] = importlib.import_module(f"benchmarks.{name}").run(args.quick)
        show(found[name])
        print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    path = args.json or (None if args.quick else RESULTS / f"{hardware()}.json")
    if path is not None:
        path, today = Path(path), datetime.date.today().isoformat()
        stored = json.loads(path.read_text())["suites"] if path.exists() else {}
        ran = {name: dataclasses.asdict(suite) | {"date": today} for name, suite in found.items()}
        suites = {name: suite for name in SUITES if (suite := ran.get(name, stored.get(name)))}
        content = {"hardware": hardware(), "versions": versions(), "suites": suites}
        path.write_text(json.dumps(content, indent=1, default=float) + "\n")
        report.write(path)
    missed = [claim for suite in found.values() for claim in suite.claims if not claim.holds]
    total = sum(len(suite.claims) for suite in found.values())
    print(f"\n{total - len(missed)} of {total} claims hold")
    for claim in missed:
        print(f"  missed: {claim.case}: {claim.what}: {claim.measured:.3g}, bar {claim.bar:g}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
