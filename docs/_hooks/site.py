"""What of the site is not written by hand: pages from the README, notebooks, docstrings, results.

MkDocs calls the functions whose names begin with on_. The pages exist only during a build.
"""

import re
from pathlib import Path

import api
import formulas
import results
from mkdocs.structure.files import File

import notebooks

ROOT = Path(__file__).resolve().parents[2]

# Page of the site: file of the tree that it shows.
INCLUDED = {
    "index.md": "README.md",
    "contribute.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks/scaling.md": "benchmarks/scaling.md",
}
ASSETS = ("CITATION.cff", "LICENSE")
LINK = re.compile(r"(\]\()([\w./-]+)(\)|#)")


def _linked(page: str, source: str, text: str) -> str:
    """Turn links between files of the tree into links between pages."""
    depth = page.count("/")
    pages = {path: name for name, path in INCLUDED.items()} | {"notebooks": "notebooks/index.md"}

    def moved(match: re.Match) -> str:
        target = (Path(source).parent / match[2]).as_posix()
        target = pages.get(target, target.removeprefix("docs/"))
        return f"{match[1]}{'../' * depth}{target}{match[3]}"

    return LINK.sub(moved, text)


def included(page: str, source: str) -> str:
    """Return a file of the tree as a page."""
    text = _linked(page, source, (ROOT / source).read_text())
    # HTML of the README, and the examples that are a session of the interpreter.
    text = text.replace("<details>", '<details markdown="1">').replace(
        "```python\n>>>", "```pycon\n>>>"
    )
    # No pages beside the home page in its navigation.
    head = "---\nhide: [navigation]\n---\n" if page == "index.md" else ""
    return head + re.sub(r'src="docs/', 'src="', text)


def on_config(config):
    for entry in config.nav:
        if "Notebooks" in entry:
            entry["Notebooks"] = ["notebooks/index.md", *notebooks.nav()]
        if "API" in entry:
            entry["API"] = ["api/index.md", *api.nav()]
    return config


def on_files(files, config):
    pages = {page: included(page, source) for page, source in INCLUDED.items()}
    pages |= {name: (ROOT / name).read_text() for name in ASSETS}
    pages |= notebooks.pages() | api.pages() | results.pages()
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_content(html, page, config, files):
    return formulas.rendered(html, page.file.src_uri)
