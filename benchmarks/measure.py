"""What all suites share: clocks, peak memory, the machine's name, and how a result is written down.

A suite is a module with `run(quick) -> Report`. Times are medians of interleaved calls in one
process, compilation apart: only their ratios carry over to another run or machine.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender in one case.

    Attributes:
        case: what was computed.
        name: who computed it.
        seconds: median of a whole call; None where the target was not reached.
        compile: seconds that the first call took longer.
        memory: bytes of resident memory that a call adds at its peak.
        error: what the suite says it measures.
        note: settings, or why there is no figure.
    """

    case: str
    name: str
    seconds: float | None
    compile: float | None = None
    memory: int | None = None
    error: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A figure against its bar."""

    case: str
    what: str
    measured: float
    bar: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        """Whether the bar is reached; NaN never does."""
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar


@dataclasses.dataclass(frozen=True)
class Report:
    """What a suite returns: all rows, the claims on them, and what ``error`` means."""

    rows: list[Row]
    claims: list[Claim]
    error: str = "error"


def medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int = 9, warm: int = 1
) -> dict[str, float]:
    """Return the median seconds of each call as in a loop of its own, the calls taking turns.

    Each turn calls twice and times the second: the threads of OpenBLAS and OpenMP go on spinning
    for up to 0.1 s after a call, on half of two cores, and nobody shall pay for those of another.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm + repeats):
        for name, call in calls.items():
            jax.block_until_ready(call())
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= warm:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(spent) for name, spent in times.items()}


def first_call(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and its seconds: tracing, compiling and one run."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def status(field: str) -> int:
    """Return a size of this process in bytes, by its name in /proc/self/status."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


def peak_memory(call: Callable[[], Any]) -> int | None:
    """Return the bytes of resident memory that a call adds at its peak; None outside Linux."""
    with contextlib.suppress(OSError):
        before = status("VmRSS:")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        jax.block_until_ready(call())
        return max(0, status("VmHWM:") - before)
    return None


def timed(
    case: str, calls: Mapping[str, Callable[[], Any]], error: Callable, repeats: int
) -> list[Row]:
    """Return a row for each call, timed in turns; those compiled by JAX show what that took."""
    first = {name: first_call(call) for name, call in calls.items()}
    seconds = medians(calls, repeats)
    return [
        Row(
            case,
            name,
            seconds[name],
            compile=first[name][1] - seconds[name] if "jax" in name or "jnp" in name else None,
            memory=peak_memory(calls[name]),
            error=error(first[name][0]),
        )
        for name in calls
    ]


def hardware() -> str:
    """Return a short name of the machine the arrays live on, fit for a file name."""
    device = jax.devices()[0]
    name = device.device_kind
    if device.platform == "cpu":
        name = platform.processor() or platform.machine()
        with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
            name = next((x.split(":")[1] for x in file if x.startswith("model name")), name)
        name = f"{name} {len(os.sched_getaffinity(0))} cores"
    words = name.replace("(R)", "").replace("(TM)", "").replace("CPU", "").split()
    return "-".join("".join(c for c in word if c.isalnum() or c in ".-") for word in words).lower()


def versions() -> dict[str, str]:
    """Return the versions of all that may take part."""
    found = {"python": platform.python_version()}
    for name in ("jaxsvd", "jax", "jaxlib", "numpy", "scipy", "scikit-learn", "torch", "matfree"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def show(report: Report) -> None:
    """Print the rows of a report by case, then its claims."""
    print(f"{hardware()}  " + "  ".join(f"{name} {x}" for name, x in versions().items()))
    case = None
    for row in report.rows:
        if row.case != case:
            case = row.case
            print(f"\n{case}  ({report.error})")
        seconds = "-" if row.seconds is None else f"{row.seconds:10.4f} s"
        first = "" if row.compile is None else f"compile {row.compile:.1f} s"
        memory = "" if row.memory is None else f"{row.memory / 1e6:.0f} MB"
        error = "" if row.error is None else f"{row.error:.1e}"
        print(f"  {row.name:28} {seconds:>12} {first:>15} {memory:>9} {error:>8}  {row.note}")
    print()
    for claim in report.claims:
        sign = ">=" if claim.at_least else "<="
        verdict = "holds " if claim.holds else "FAILS "
        print(f"{verdict} {claim.case}: {claim.what}: {claim.measured:.3g} {sign} {claim.bar:.3g}")


def main(name: str, run: Callable[..., Report]) -> int:
    """Run one suite from the command line; return 1 if a claim of it does not hold."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    report = run(parser.parse_args().quick)
    show(report)
    return 0 if all(claim.holds for claim in report.claims) else 1
