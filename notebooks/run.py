"""Runs the notebooks of this folder, each from top to bottom in a fresh kernel.

    python notebooks/run.py                  all of them; fails with the notebook, the cell and the
                                             error if a cell fails
    python notebooks/run.py 03 05_images     those whose names begin so
    python notebooks/run.py --write 03       stores the outputs of this run in the file
    python notebooks/run.py -j 1             one at a time; two by default

Needs the extra `notebooks`. A kernel works in an empty folder that is removed afterwards. What
--write stores is the outputs and nothing that differs from one machine or run to the next.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).resolve().parent
CELL_SECONDS = 600  # the time limit of one cell, for a machine that does much else
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def chosen(names):
    """The notebooks whose file names begin with one of the names; all of them if there are none."""
    everything = sorted(FOLDER.glob("*.ipynb"))
    if not names:
        return everything
    stems = [Path(name).stem for name in names]
    for stem in stems:
        if not any(path.name.startswith(stem) for path in everything):
            raise SystemExit(f"notebooks/run.py: no notebook begins with {stem!r}")
    return [path for path in everything if path.name.startswith(tuple(stems))]


def cleaned(notebook):
    """The notebook without what varies: kernel, timings, metadata; cells numbered in order."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        kept = {key: cell.metadata[key] for key in ("tags",) if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return notebook


async def execute(path, write):
    """Runs one notebook; None, or a description of what failed."""
    notebook = nbformat.read(path, as_version=4)
    now = {"cell": 0}
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=CELL_SECONDS,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],  # no warning that it talks over local TCP
            resources={"metadata": {"path": folder}},
            on_cell_execute=lambda cell, cell_index: now.update(cell=cell_index),
        )
        try:
            await client.async_execute()
        except CellExecutionError as error:
            return f"{path.name}, cell {now['cell']}: {COLOURS.sub('', str(error)).strip()}"
        except (CellTimeoutError, DeadKernelError) as error:
            source = notebook.cells[now["cell"]].source
            return f"{path.name}, cell {now['cell']}: {error}\n{source}"
    if write:
        cleaned(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, path)
    return None


async def execute_all(paths, jobs, write):
    """Runs the notebooks, at most `jobs` at a time; the failures."""
    free, failures, done = asyncio.Semaphore(jobs), [], 0

    async def one(path):
        nonlocal done
        async with free:
            start = time.perf_counter()
            failure = await execute(path, write)
            done += 1
            word = "FAILED" if failure else "ok"
            seconds = time.perf_counter() - start
            print(f"[{done:2d}/{len(paths)}] {seconds:6.1f} s  {word:6s}  {path.name}", flush=True)
            if failure:
                print(failure, flush=True)
                failures.append(path.name)

    await asyncio.gather(*map(one, paths))
    return failures


def main(arguments=None):
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="notebooks/run.py", description="Runs the notebooks of this folder."
    )
    parser.add_argument("names", nargs="*", help="beginnings of file names; all if none is given")
    parser.add_argument("--write", action="store_true", help="store the outputs in the files")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="how many at a time (2)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"-j must be at least 1, got {options.jobs}")
    # OpenBLAS's threads go on spinning after each small SVD and take the cores from XLA's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    paths, start = chosen(options.names), time.perf_counter()
    failures = asyncio.run(execute_all(paths, options.jobs, options.write))
    print(f"{len(paths)} notebooks in {time.perf_counter() - start:.0f} s", end="")
    print(f"; failed: {', '.join(sorted(failures))}" if failures else "; all passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
