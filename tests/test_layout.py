"""The house: the order of imports, sizes of files, where derivative rules may live, versions.

Data flows one way. ORDER is the order of the package: a file imports only from entries above its
own. INSIDE is the same for the files of each subpackage. A new file is entered here first.
"""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import jaxsvd

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxsvd"

ORDER = [
    "_types",
    "_openblas",
    "_tolerances",
    "_checks",
    "_differences",
    "_leaves",
    "_files",
    "algorithms.products",  # the one door to matrix products, for operators too
    "operators",
    "algorithms",
    "rules",
    "primitives",
    "track",
    "streaming",
    "diagnosis",
    "foreign",
    "errorbars",
    "linalg",
    "norms",
    "regularizers",
    "transforms",
    "layers",
    "lora",
    "compress",
    "models",
    "plot",
    "__init__",  # may import everything; the command line may import it
    "cli",
    "__main__",
]

INSIDE = {
    "operators": [
        "base",
        "dense",
        "sparse",
        "compose",
        "function",
        "adapters",
        "convolution",
        "sources",
        "rowblocks",
    ],
    "algorithms": [
        "orthonormal",
        "phase",
        "dense",
        "refinement",
        "chunks",
        "jacobi",
        "registers",
        "polar",
        "gram",
        "tall",
        "router",
        "subspace",
        "randomized",
        "krylov",
        "lanczos",
        "drive",
        "adaptive",
        "outofcore",
        "passes",
        "streaming",
    ],
    "rules": [
        "dense",
        "conjugate_gradients",
        "truncated",
        "core",
        "eigh",
        "eigenpairs",
        "spectral",
        "hermitian",
        "closed",
        "gauge",
    ],
    "primitives": [
        "ruled",
        "batching",
        "placement",
        "two_sided",
        "probe",
        "disturbance",
        "runs",
        "svd",
        "truncated",
        "randomized",
        "adaptive",
        "core",
        "spectral",
        "hermitian",
        "eigh",
        "extreme",
        "eigenpairs",
        "foreign",
        "gauge",
    ],
    "foreign": [
        "terms",
        "axes",
        "jaxprs",
        "orders",
        "patterns",
        "sums",
        "report",
        "interpret",
        "wrap",
    ],
    "linalg": ["maps", "solve", "alignment", "spaces", "rank", "functions", "hermitian"],
    "norms": ["sums", "bounds", "convolution", "largest"],
    "transforms": ["projections", "updates", "low_rank"],
    "layers": ["factors", "linear", "orthogonal", "convolution", "whiten"],
    "lora": ["adapter", "initial", "change", "peft"],
    "compress": [
        "factorize",
        "allocate",
        "stored",
        "storage",
        "budget",
        "gates",
        "views",
        "watch",
        "gram",
    ],
    "models": [
        "_moments",
        "pca",
        "observed",
        "soft_impute",
        "thresholding",
        "completion",
        "ratings",
        "factors",
        "normal_equations",
        "sgd",
        "als",
        "recommender",
        "robust",
        "image",
    ],
    "plot": ["style", "data", "spectra", "geometry", "images", "maps"],
    "cli": ["experiments", "demo", "info", "checkpoint", "page", "report", "compress"],
}

MAX_LINES = 500
MAX_LINES_OUTSIDE_DOCSTRINGS = 300


def files() -> dict[str, Path]:
    """Every module below jaxsvd/, by its dotted name without the leading "jaxsvd."."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


FILES = files()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}


def rank(name: str) -> tuple[int, int] | None:
    """The place of a module in the written order; None if it is not written there.

    A subpackage's __init__ (and the subpackage as a target, "rules") stands after all its files.
    """
    if name in ORDER:
        return ORDER.index(name), len(INSIDE.get(name, []))
    top, *rest = name.split(".")
    if top not in ORDER or len(rest) > 1:
        return None
    inside = INSIDE.get(top, [])
    if not rest or rest == ["__init__"]:
        return ORDER.index(top), len(inside)
    return (ORDER.index(top), inside.index(rest[0])) if rest[0] in inside else None


def module(dotted: str) -> str | None:
    """The module that a dotted path below jaxsvd leads to; None if it leads to none."""
    if not dotted:
        return "__init__"
    return dotted if dotted in FILES or f"{dotted}.__init__" in FILES else None


def imports(name: str) -> list[tuple[int, str]]:
    """(line, module) for each import of a jaxsvd module, wherever in the file it stands."""
    here = ["jaxsvd", *name.split(".")[:-1]]  # the package the file is in
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import x`: x may be a module of it, or a name of its __init__.
            paths = []
            for alias in node.names:
                full = f"{base}.{alias.name}"
                is_module = full.startswith("jaxsvd.") and module(full.removeprefix("jaxsvd."))
                paths.append(full if is_module else base)
        else:
            continue
        for path in paths:
            if path.split(".")[0] == "jaxsvd":
                below = path.removeprefix("jaxsvd").removeprefix(".")
                found.append((node.lineno, module(below) or below))
    return found


def docstring_lines(tree: ast.AST) -> int:
    count = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                if isinstance(first.value.value, str):
                    count += first.end_lineno - first.lineno + 1
    return count


def test_every_file_is_in_the_written_order():
    missing = [name for name in FILES if rank(name) is None]
    assert not missing, f"enter in ORDER or INSIDE of {Path(__file__).name}: {missing}"


def test_imports_point_upwards():
    wrong = []
    for name in FILES:
        if name == "__init__" or rank(name) is None:
            continue
        for line, target in imports(name):
            place = rank(target)
            if place is None or not place < rank(name):
                wrong.append(f"jaxsvd/{name.replace('.', '/')}.py:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_operators_never_call_a_decomposition():
    wrong = [
        f"{name}:{line} imports {target}"
        for name in FILES
        if name.startswith("operators.")
        for line, target in imports(name)
        if target.split(".")[0] in ("algorithms", "primitives") and target != "algorithms.products"
    ]
    assert not wrong, "\n".join(wrong)


def test_custom_derivatives_live_in_primitives_only_and_are_not_those_of_jax():
    wrong = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            # jax.custom_jvp, from jax import custom_jvp, a bare custom_jvp
            used = {getattr(node, field, None) for field in ("attr", "name", "id")}
            inside = name.startswith("primitives.")
            if used & {"custom_jvp", "custom_vjp"} or (not inside and "ruled" in used):
                wrong.append(f"{name}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_changes_the_configuration():
    wrong = []
    for name, tree in TREES.items():
        if name.startswith("cli."):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "update":
                owner = node.value
                if getattr(owner, "attr", getattr(owner, "id", "")) == "config":
                    wrong.append(f"{name}:{node.lineno}")
        # An example in a docstring runs too, and would change it for all that come after.
        text = FILES[name].read_text()
        wrong += [f"{name}: {example}" for example in re.findall(r">>> .*config\.update.*", text)]
    assert not wrong, "\n".join(wrong)


def test_files_are_small():
    wrong = []
    for name, path in FILES.items():
        lines = len(path.read_text().splitlines())
        outside = lines - docstring_lines(TREES[name])
        if lines > MAX_LINES or outside > MAX_LINES_OUTSIDE_DOCSTRINGS:
            wrong.append(f"{name}: {lines} lines, {outside} of them outside docstrings")
    assert not wrong, "\n".join(wrong)


def test_public_names_exist_and_are_documented():
    wrong = []
    for name in jaxsvd.__all__:
        value = getattr(jaxsvd, name, None)
        if name.startswith("__") and value is not None:  # __version__
            continue
        doc = inspect.getdoc(value)
        # A NamedTuple is born with "Name(field, ...)", instances have their class's.
        written = doc and not doc.startswith(f"{name}(") and doc != inspect.getdoc(type(value))
        if not written:
            wrong.append(name)
    assert not wrong, f"missing, or without a docstring of their own: {wrong}"
    assert len(set(jaxsvd.__all__)) == len(jaxsvd.__all__)


def test_version_is_the_same_everywhere():
    version = jaxsvd.__version__
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == version
    cited = re.findall(r"^version: *\"?([^\"\s]+)", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited == [version]
    readme = (ROOT / "README.md").read_text()
    named = re.findall(r"(?:jaxsvd|[Vv]ersion)[\s=@v{\"]+(\d+\.\d+\.\d+)", readme)
    assert set(named) <= {version}


def test_requirements_have_no_upper_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    named = [requirement for group in groups for requirement in group]
    pinned = [requirement for requirement in named if re.search(r"<|==|~=", requirement)]
    assert not pinned
    core = {re.match(r"[\w-]+", requirement).group() for requirement in project["dependencies"]}
    assert core == {"jax", "jaxlib", "optax", "numpy"}
