"""Public names: each is in a test, and results are of the types they are said to be."""

import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxsvd
from jaxsvd import compress, layers, linalg, lora, regularizers, rules, streaming, track
from jaxsvd.foreign import Replacement, SafeReport
from tests.helpers import gaussian, reference_pages

ROOT = Path(__file__).resolve().parent.parent

A = jnp.asarray(gaussian((4, 3)))
SQUARE = A.T @ A
PARAMS = {"w": jnp.asarray(gaussian((8, 6)))}


def by_jnp(A):
    return jnp.sum(jnp.linalg.svd(A, compute_uv=False))


RESULTS = {  # what comes out: its type
    "core_eigh": (lambda: jaxsvd.core_eigh(SQUARE, 2), jaxsvd.CoreEigh),
    "diagnose": (lambda: jaxsvd.diagnose(by_jnp, A), jaxsvd.Diagnosis),
    "safe, report": (lambda: jaxsvd.safe(by_jnp, report=True)(A)[1], SafeReport),
    "safe, one of it": (
        lambda: jaxsvd.safe(by_jnp, report=True)(A)[1].replacements[0],
        Replacement,
    ),
    "linalg.polar": (lambda: linalg.polar(A), linalg.Polar),
    "linalg.procrustes": (lambda: linalg.procrustes(A, A), linalg.Procrustes),
    "linalg.kabsch": (lambda: linalg.kabsch(A, A), linalg.Alignment),
    "linalg.jordan_wielandt": (lambda: linalg.jordan_wielandt(A), linalg.JordanWielandt),
    "linalg.subspaces": (lambda: linalg.subspaces(A), linalg.Subspaces),
    "rules.full_numbers": (lambda: rules.full_numbers(jaxsvd.svd(A, False), 2), rules.Numbers),
    "regularizers.spectral_normalize_init": (
        lambda: regularizers.spectral_normalize_init(PARAMS),
        regularizers.NormalizeState,
    ),
    "regularizers.report": (lambda: regularizers.report(PARAMS), regularizers.Report),
    "regularizers.report, a row": (lambda: regularizers.report(PARAMS).rows[0], regularizers.Row),
    "layers.Whiten.init_state": (
        lambda: layers.Whiten.init(3).init_state(),
        layers.WhitenState,
    ),
    "lora.init": (lambda: lora.init(jax.random.key(0), PARAMS, 2)["w"], lora.Adapter),
    "compress.allocate": (
        lambda: compress.allocate([[3.0, 1.0]], [(2, 3)], 6),
        compress.Allocation,
    ),
    "compress.to_budget": (lambda: compress.to_budget(PARAMS, 0.6)[1], compress.Report),
    "compress.to_budget, a leaf": (
        lambda: compress.to_budget(PARAMS, 0.6)[1].leaves[0],
        compress.LeafReport,
    ),
    "streaming.init": (lambda: streaming.init(6, 2), streaming.StreamState),
    "track.init": (lambda: track.init(A, 2), track.TrackState),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_of_their_public_type(name):
    make, kind = RESULTS[name]
    assert type(make()) is kind


def test_gauge_error_is_a_value_error():
    assert issubclass(jaxsvd.GaugeError, ValueError)


def public_names() -> dict[str, list[str]]:
    """The names of the package and of each public module, as the reference lists them."""
    api = reference_pages()
    modules = [m for m in jaxsvd.__all__ if isinstance(getattr(jaxsvd, m), types.ModuleType)]
    own = {module: api._own(getattr(jaxsvd, module)) for module in modules}
    return {"jaxsvd": list(jaxsvd.__all__), **own}


def test_every_public_name_is_in_a_test():
    text = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    missing = [
        f"{module}.{name}"
        for module, names in public_names().items()
        for name in names
        if not re.search(rf"\b{name}\b", text)
    ]
    assert not missing
