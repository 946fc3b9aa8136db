"""The reference: a page for each area, a heading for each public name, the text from docstrings."""

import ast
import importlib
import inspect
import types

# Title, module, names; a module without names shows all that are its own.
AREAS = {
    "svd": (
        "Decompositions",
        "jaxsvd",
        "svd svdvals truncated_svd randomized_svd adaptive_svd core_svd residuals "
        "SVDResult CoreSVD Info",
    ),
    "functions": (
        "Functions of a matrix",
        "jaxsvd",
        "spectral_map spectral_sum low_rank core_map hermitian_map hermitian_sum",
    ),
    "eigh": ("Hermitian matrices", "jaxsvd", "eigh core_eigh truncated_eigh EighResult CoreEigh"),
    "trust": (
        "Checks of a gradient",
        "jaxsvd",
        "diagnose Diagnosis gauge_check GaugeError GaugeWarning safe value_and_grad_with_error",
    ),
    "linalg": ("Linear algebra", "jaxsvd.linalg", ""),
    "norms": ("Norms", "jaxsvd.norms", ""),
    "regularizers": ("Regularizers", "jaxsvd.regularizers", ""),
    "transforms": ("Optimizers", "jaxsvd.transforms", ""),
    "layers": ("Layers", "jaxsvd.layers", ""),
    "lora": ("Adapters", "jaxsvd.lora", ""),
    "compress": ("Compression", "jaxsvd.compress", ""),
    "pca": ("Models: principal components", "jaxsvd.models.pca", ""),
    "completion": ("Models: matrix completion", "jaxsvd.models.completion", ""),
    "recommender": ("Models: recommenders", "jaxsvd.models.recommender", ""),
    "robust": ("Models: robust PCA", "jaxsvd.models.robust", ""),
    "image": ("Models: images", "jaxsvd.models.image", ""),
    "operators": ("Operators", "jaxsvd.operators", ""),
    "streaming": ("Rows that arrive", "jaxsvd.streaming", ""),
    "track": ("Tracking a subspace", "jaxsvd.track", ""),
    "foreign": ("Derivatives of other people's code", "jaxsvd.foreign", ""),
    "rules": ("Derivative rules", "jaxsvd.rules", ""),
    "plot": ("Pictures", "jaxsvd.plot", ""),
}
INTERNAL = {"jaxsvd.regularizers.spectra", "jaxsvd.regularizers.row_of"}
BARE = {"members": False, "show_root_heading": False, "show_root_toc_entry": False}


def _own(module: types.ModuleType) -> list[str]:
    """Return the public names that a module defines, or gives on by `import x as x`."""
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
    kept = [n for n in names if n[0] != "_" and f"{module.__name__}.{n}" not in INTERNAL]
    return [n for n in kept if callable(getattr(module, n))]


def _page(title: str, path: str, names: str) -> str:
    module = importlib.import_module(path)
    lines = [f"# {title}", ""]
    if not names:
        lines += [f"::: {path}", "    options:"]
        lines += [f"      {key}: {str(value).lower()}" for key, value in BARE.items()] + [""]
    for name in names.split() or _own(module):
        lines += [f"::: {path}.{name}", ""]
    return "\n".join(lines)


def _first_line(path: str, name: str) -> str:
    text = inspect.getdoc(getattr(importlib.import_module(path), name)) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _index() -> str:
    lines = ["# API", "", "Every public name, by area; the text is that of the docstrings.", ""]
    for file, (title, path, names) in AREAS.items():
        lines += [f"## [{title}]({file}.md)", "", "| name | |", "|---|---|"]
        for name in names.split() or _own(importlib.import_module(path)):
            full = f"{path}.{name}"
            lines.append(f"| [`{full}`]({file}.md#{full}) | {_first_line(path, name)} |")
        lines.append("")
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return the content of each page by its path in the site."""
    found = {f"api/{file}.md": _page(*area) for file, area in AREAS.items()}
    return found | {"api/index.md": _index()}


def nav() -> list:
    """Return the pages for the navigation."""
    return [{title: f"api/{file}.md"} for file, (title, _, _) in AREAS.items()]
