"""The documentation is run: both columns of "coming from", names on pages, what the site shows."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import sklearn.decomposition
import sklearn.utils.extmath

import jaxsvd
from tests.helpers import reference_pages

ROOT = Path(__file__).resolve().parent.parent
COMING_FROM = (ROOT / "docs" / "guide" / "coming-from.md").read_text()
ROW = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \|", re.MULTILINE)
ROWS = ROW.findall(COMING_FROM)
# Their vectors are any basis of the same space: what agrees is the projection on it.
SUBSPACES = ("orth(", "null_space(")


@pytest.fixture(scope="module")
def names():
    """The names that all rows share, as the page defines them."""
    found = {"scipy": scipy, "sklearn": sklearn, "jax": jax}
    (setup,) = re.findall(r"```python\n(.*?)```", COMING_FROM, re.DOTALL)
    exec(setup, found)
    return found


def numbers(x) -> np.ndarray:
    return np.asarray(x.detach().numpy() if hasattr(x, "detach") else x, np.float64)


def invariant(result, call: str) -> list[np.ndarray]:
    """What of a result does not depend on a sign, a phase or an order that theirs leaves open."""
    if isinstance(result, tuple | list) or hasattr(result, "_fields"):
        parts = [numbers(part) for part in result]
        if len(parts) == 3:
            U, S, Vh = parts
            k = len(S)
            return [np.sort(S), (U[:, :k] * S) @ Vh[:k]]
        if parts[0].ndim == 1:
            w, Q = parts
            return [np.sort(w), (Q * w) @ Q.T]
        return parts  # the factors of the polar decomposition are unique
    x = numbers(result)
    if any(word in call for word in SUBSPACES):
        return [x @ x.T]
    if "components" in call or "transform" in call:
        return [np.abs(x)]
    return [x]


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[theirs[:50] for theirs, _ in ROWS])
def test_their_call_and_ours_agree(theirs, ours, names):
    mine = invariant(eval(ours, names), ours)
    assert all(np.isfinite(part).all() for part in mine)
    if theirs.startswith("torch"):
        if importlib.util.find_spec("torch") is None:
            return  # ours has run; theirs is compared where it is installed
        names["torch"] = importlib.import_module("torch")
    wanted = invariant(eval(theirs, names), theirs)
    assert len(mine) == len(wanted)
    for found, expected in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_every_row_of_the_tables_is_run():
    tables = [line for line in COMING_FROM.splitlines() if line.startswith("| `")]
    assert len(tables) == len(ROWS) > 30


def test_pages_name_what_exists():
    """Each `jaxsvd...` or `area.name` that a page of the guide names in code."""
    areas = {n for n in jaxsvd.__all__ if type(getattr(jaxsvd, n)).__name__ == "module"}
    wrong = []
    for page in (ROOT / "docs").rglob("*.md"):
        for dotted in re.findall(r"(?<![\w./])(?:jaxsvd\.)?((?:\w+\.)*\w+)", page.read_text()):
            first, *rest = dotted.split(".")
            if first in areas and rest and rest[0] not in ("md", "py"):
                value = getattr(jaxsvd, first)
                for name in rest:
                    value = getattr(value, name, None)
                if value is None:
                    wrong.append(f"{page.name}: {dotted}")
    assert not wrong


def test_picture_of_the_readme_is_there_and_small():
    readme = (ROOT / "README.md").read_text()
    (path,) = re.findall(r"!\[[^\]]+\]\((docs/pictures/[\w.]+)\)", readme)
    assert 5_000 < (ROOT / path).stat().st_size < 120_000


def test_summaries_of_the_readme_are_those_of_its_tables():
    readme = (ROOT / "README.md").read_text()
    tables = re.findall(
        r"<summary>.*?(\d+) of \d+ and (\d+) of \d+</summary>(.*?)</details>", readme, re.DOTALL
    )
    assert len(tables) == 2
    for first, second, table in tables:
        total = re.search(r"^\| all \|(.*)$", table, re.MULTILINE)[1].split("|")
        assert [total[0].split("/")[0].strip(), total[3].split("/")[0].strip()] == [first, second]


def test_every_public_name_has_a_place_in_the_reference():
    text = "\n".join(reference_pages().pages().values())
    missing = [n for n in jaxsvd.__all__ if not re.search(rf"::: jaxsvd\.(\w+\.)*{n}\b", text)]
    assert not missing
