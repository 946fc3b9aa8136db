"""The notebooks as pages, with the outputs they are stored with: nothing runs here."""

import base64
import json
import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
INTRODUCTION = """# Notebooks

Each has one idea, runs from top to bottom in minutes on a laptop, and asserts what it says. The
outputs are those of a run by `python notebooks/run.py --write`; the tests run all of them again.

"""


def _text(value) -> str:
    return value if isinstance(value, str) else "".join(value)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _output(output: dict, name: str, files: dict) -> str:
    """Return an output of a cell as Markdown; its picture is added to the files."""
    if output["output_type"] == "stream":
        return _fenced(_text(output["text"]), "text")
    if output["output_type"] == "error":
        return _fenced("\n".join(output["traceback"]), "text")
    data = output["data"]
    for kind, suffix in PICTURES.items():
        if kind in data:
            raw = _text(data[kind])
            path = f"notebooks/{name}.{suffix}"
            files[path] = raw if suffix == "svg" else base64.b64decode(raw)
            words = re.sub(r"\W+", " ", name)
            return f"![output of {words}]({name}.{suffix})\n"
    if "text/html" in data:
        return f'<div class="output">\n{_text(data["text/html"])}\n</div>\n'
    if "text/latex" in data:
        return f"{_text(data['text/latex'])}\n"
    return _fenced(_text(data.get("text/plain", "")), "text")


def _page(path: Path, files: dict) -> str:
    notebook = json.loads(path.read_text())
    parts, numbered = [], 0
    for number, cell in enumerate(notebook["cells"]):
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"(\]\([\w-]+)\.ipynb(\)|#)", r"\1.md\2", source))
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(_fenced(source, "python"))
            for output in cell["outputs"]:
                numbered += 1
                parts.append(_output(output, f"{path.stem}-{number:02d}-{numbered}", files))
    files[f"notebooks/{path.name}"] = path.read_text()
    download = f"[Download this notebook]({path.name}){{ .md-button }}"
    return "\n\n".join([*parts, download, ""])


def _title(page: str, path: Path) -> str:
    found = re.search(r"^# +(.+)$", page, re.MULTILINE)
    return found[1].strip() if found else path.stem


@cache
def _all() -> tuple[dict, list]:
    files, entries = {}, []
    for path in sorted(FOLDER.glob("*.ipynb")):
        page = _page(path, files)
        files[f"notebooks/{path.stem}.md"] = page
        entries.append((_title(page, path), f"{path.stem}.md"))
    listed = "\n".join(f"- [{title}]({name})" for title, name in entries)
    files["notebooks/index.md"] = f"{INTRODUCTION}{listed}\n"
    return files, entries


def pages() -> dict:
    """Return the content of each page and picture by its path in the site."""
    return _all()[0]


def nav() -> list:
    """Return the pages for the navigation, in the order of their names."""
    return [{title: f"notebooks/{name}"} for title, name in _all()[1]]
