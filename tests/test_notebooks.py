"""The stored notebooks: well-formed, and with the outputs of a run that passed.

Whether they still run is the business of `python notebooks/run.py`, which `.ci/run` calls.
"""

import json
import re
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
BYTES = 600_000
# A folder of a machine, of a temporary file, or of an environment.
FOLDERS = "home|root|tmp|work|usr|opt|var|mnt|srv|Users|private"
ABSOLUTE = re.compile(rf"(?<![\w/:.])/({FOLDERS})/|[A-Z]:\\")


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def joined(text):
    return text if isinstance(text, str) else "".join(text)


def texts(output):
    """What an output says, without its pictures."""
    yield joined(output.get("text", ""))
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield joined(data)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")

    code = cells(path)
    assert any(re.search(r"^\s*assert\b", joined(cell["source"]), re.M) for cell in code)
    # Each cell was run once, in order, in one kernel.
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any(cell["outputs"] for cell in code)
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output
            assert output.get("name") != "stderr", output
            for text in texts(output):
                assert not ABSOLUTE.search(text), text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_in_it_varies_with_the_machine(path):
    notebook = json.loads(path.read_text())
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["language_info"] == {"name": "python"}
    for number, cell in enumerate(notebook["cells"]):
        assert cell["id"] == f"cell-{number:02d}"
        assert set(cell["metadata"]) <= {"tags"}
