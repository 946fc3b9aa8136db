"""The pictures: what was drawn is what was computed, settings stay, bad input is one sentence."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.patches import Polygon

import jaxsvd
from jaxsvd import plot
from tests.helpers import gaussian, with_values

S = np.array([4.0, 2.0, 1.0, 0.5])
A = with_values(S, 6, 4)


@pytest.fixture(autouse=True)
def _close_figures(monkeypatch):
    """Every picture is drawn to the end, none is shown, and no setting of others changes."""
    mpl.use("Agg")
    monkeypatch.setattr(pyplot, "show", lambda *_, **__: pytest.fail("a picture was shown"))
    before = dict(mpl.rcParams)
    yield
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
    pyplot.close("all")
    assert dict(mpl.rcParams) == before


def words(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def assert_labelled(ax) -> None:
    assert ax.get_xlabel()
    assert ax.get_ylabel()


# ------------------------------------------------------------------------------------- spectra


def test_spectrum_draws_the_singular_values_of_numpy():
    matrices = {"one": A, "two": gaussian((5, 7), np.complex128), "values": np.array([1.0, 3.0])}
    ax = plot.spectrum(matrices)
    one, two, values = ax.lines
    for line, matrix in ((one, A), (two, matrices["two"])):
        np.testing.assert_allclose(line.get_ydata(), np.linalg.svd(matrix)[1], rtol=1e-12)
    np.testing.assert_array_equal(values.get_ydata(), [3.0, 1.0])
    np.testing.assert_array_equal(one.get_xdata(), [1, 2, 3, 4])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(matrices)
    assert len({line.get_color() for line in ax.lines} & set(plot.PALETTE)) == 3
    assert ax.get_yscale() == "log"
    assert_labelled(ax)


def test_spectrum_of_energy_error_and_relative_values():
    energy = plot.spectrum(A, kind="energy").lines[0].get_ydata()
    np.testing.assert_allclose(energy, 100 * np.cumsum(S**2) / np.sum(S**2), rtol=1e-12)
    error = plot.spectrum(A, kind="error")
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    norms = [np.linalg.norm(A - (U[:, :r] * s[:r]) @ Vh[:r]) for r in range(4)]
    np.testing.assert_allclose(error.lines[0].get_ydata()[:4], norms / np.linalg.norm(A))
    assert np.isnan(error.lines[0].get_ydata()[4])  # no error at all has no place on a log axis
    np.testing.assert_array_equal(error.lines[0].get_xdata(), range(5))
    result = jaxsvd.svd(A, full_matrices=False)
    relative = plot.spectrum(result, relative=True).lines[0].get_ydata()
    np.testing.assert_allclose(relative, S / 4, rtol=1e-12)


def test_spectrum_of_zeros():
    for kind in ("values", "energy", "error"):
        ax = plot.spectrum(np.zeros((3, 3)), kind=kind)
        assert np.isnan(ax.lines[0].get_ydata()).all()
        assert ax.get_yscale() == "linear"


def test_spectrum_history_has_a_line_for_each_value():
    history = np.stack([with_values(S * t, 4, 5, seed=t) for t in range(1, 4)])
    for given in (history, list(history), np.arange(1, 4)[:, None] * S):
        ax = plot.spectrum_history(given, steps=[10, 20, 30] if given is history else None, k=3)
        assert len(ax.lines) == 3
        for i, line in enumerate(ax.lines):
            np.testing.assert_allclose(line.get_ydata(), S[i] * np.arange(1, 4), rtol=1e-12)
        if given is history:
            np.testing.assert_array_equal(ax.lines[0].get_xdata(), [10, 20, 30])
    assert_labelled(ax)
    many = plot.spectrum_history(np.sort(np.abs(gaussian((5, 12))))[:, ::-1])
    assert many.get_legend() is None
    assert many.figure.axes[1].get_ylim() == (1, 12)


# ------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("matrix", [[[1.0, 1.0], [0.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]]])
def test_ellipse_is_the_image_of_the_circle(matrix):
    matrix = np.array(matrix)
    curves = [plot.ellipse(matrix, step=step).lines[-1].get_xydata().T for step in range(4)]
    circle = curves[0]
    np.testing.assert_allclose(np.linalg.norm(circle, axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(curves[1], axis=0), 1, rtol=1e-12)
    s = np.linalg.svd(matrix)[1]
    np.testing.assert_allclose(np.linalg.norm(curves[2] / s[:, None], axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(curves[3], matrix @ circle, atol=1e-12)
    both = plot.ellipse(matrix)
    np.testing.assert_allclose(both.lines[-1].get_xydata().T, matrix @ circle, atol=1e-12)
    assert words(both).count("$s_1 u_1$") == 1
    ends = {text.get_text(): np.array(text.xy) for text in both.texts if text.get_text()}
    for i in (1, 2):  # the half axes are the images of v_1 and v_2
        image = matrix @ ends[f"$v_{i}$"]
        np.testing.assert_allclose(ends[f"$s_{i} u_{i}$"], image, atol=1e-12)
        assert np.linalg.norm(image) == pytest.approx(s[i - 1])
    assert_labelled(both)


def test_ellipse_says_rotate_and_reflect_and_carries_a_shape():
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    for matrix, first in ((np.diag([2.0, 1.0]), "rotate by 0"), (np.diag([2.0, -1.0]), "reflect")):
        titles = [plot.ellipse(turn @ matrix, step=step).get_title() for step in range(4)]
        assert first in titles[1]
        assert "stretch by 2 and 1" in titles[2]
        assert "rotate by 90" in titles[3]
    square = np.array([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    ax = plot.ellipse(turn, step=3, shape=square)
    np.testing.assert_allclose(ax.patches[0].get_xy()[:4].T, turn @ square, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "rank", "dims"), [((5, 4), 2, (2, 2, 2, 3)), ((3, 3), 3, (3, 0, 3, 0))]
)
def test_subspaces_says_the_dimensions(shape, rank, dims):
    ax = plot.subspaces(with_values(S[:rank], *shape))
    assert tuple(int(w.split()[-1]) for w in words(ax) if "dim" in w) == dims
    boxes = [patch for patch in ax.patches if isinstance(patch, Polygon)]
    lengths = [np.linalg.norm(np.diff(box.get_xy()[:2], axis=0)) for box in boxes]
    wanted = np.array([d for d in dims if d])
    np.testing.assert_allclose(lengths / lengths[0], wanted / wanted[0], rtol=1e-12)
    assert ("$A x = 0$" in words(ax)) == (dims[1] > 0)


def test_subspaces_with_a_tolerance():
    ax = plot.subspaces(A, rtol=0.3)
    assert "row space, dim 2" in words(ax)
    assert "$\\mathbf{C}^{4}$" in words(plot.subspaces(A.astype(complex)))


# -------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("kind", ["grey", "colours", "integers"])
def test_low_rank_images_are_the_best_ones(kind):
    image = np.clip(0.5 + 0.1 * gaussian((12, 10, 3)), 0, 1)
    image = {"grey": image[..., 0], "colours": image}.get(kind, np.uint8(255 * image))
    ax = plot.low_rank_images(image, [1, 4])
    original, *drawn = [np.asarray(shown.get_array()) for shown in ax.images]
    top = 255.0 if kind == "integers" else 1.0
    np.testing.assert_allclose(original, image / top, atol=1e-12)
    channels = np.moveaxis(np.atleast_3d(image).astype(float), -1, 0)
    for rank, picture, caption in zip((1, 4), drawn, words(ax)[1:], strict=True):
        U, s, Vh = np.linalg.svd(channels, full_matrices=False)
        best = np.moveaxis((U[:, :, :rank] * s[:, None, :rank]) @ Vh[:, :rank], 0, -1)
        best = np.clip(best.reshape(image.shape) / top, 0, 1)
        np.testing.assert_allclose(picture, best, atol=0.51 / 255 if kind == "integers" else 1e-9)
        assert caption.startswith(f"rank {rank}: {100 * rank * 23 / 120:.1f} %")
    left, right, *_ = ax.images[1].get_extent()
    assert right - left == 10


def test_singular_vectors_as_curves_and_as_images():
    U, _, Vh = np.linalg.svd(A, full_matrices=False)
    ax = plot.singular_vectors(A, 2)
    for i, line in enumerate(ax.lines[:2]):
        assert abs(U[:, i] @ line.get_ydata()) == pytest.approx(1)
    assert [text.get_text()[-5:] for text in ax.get_legend().get_texts()] == ["s = 4", "s = 2"]
    assert_labelled(ax)
    ax = plot.singular_vectors(jaxsvd.svd(A, full_matrices=False), 3, side="right", shape=(2, 2))
    assert len(ax.images) == 3
    for i, image in enumerate(ax.images):
        assert abs(Vh[i] @ np.asarray(image.get_array()).ravel()) == pytest.approx(1)
        assert image.norm.vmin == -image.norm.vmax


# ---------------------------------------------------------------------------------------- maps


def test_gap_map_marks_ties_and_zeros():
    s = np.array([2.0, 2.0, 1.0, 1.0 - 1e-6, 0.0])
    ax = plot.gap_map(s)
    digits = np.asarray(ax.images[0].get_array())
    eps = np.finfo(np.float64).eps
    assert digits[0, 2] == pytest.approx(np.log10(0.5 / eps))
    assert digits[2, 3] == pytest.approx(np.log10(0.5e-6 / eps), rel=1e-6)
    assert digits[2, 2] == pytest.approx(np.log10(0.5 / eps))
    assert {tuple(p) for p in ax.lines[0].get_xydata()} == {(1, 2), (2, 1), (5, 5)}
    assert len(words(ax)) == 25 - 3
    assert_labelled(ax)
    # In float32 the gap of 1e-6 is a tie as well.
    assert (3, 4) in {tuple(p) for p in plot.gap_map(np.float32(s)).lines[0].get_xydata()}
    assert not words(plot.gap_map(gaussian((20, 30))))


def test_report_draws_a_row_for_each_matrix(tmp_path):
    params = {
        "a": {"kernel": A, "bias": np.ones(4)},
        "b": {"kernel": jnp.stack([jnp.eye(3), jnp.ones((3, 3))])},
    }
    ax = plot.report(params, axes=(1, 2))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["a/kernel", "b/kernel[0]", "b/kernel[1]"]
    rows = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(rows[0, [0, 64, 128, 255]], np.log10(S / 4), rtol=1e-12)
    np.testing.assert_allclose(rows[1], 0, atol=1e-12)
    assert rows[2, -1] == -6
    table = jaxsvd.regularizers.report(params, axes=(1, 2)).rows
    for line, field in zip(ax.lines, ("rank90", "rank99"), strict=True):
        wanted = [100 * getattr(row, field) / min(row.shape) for row in table]
        np.testing.assert_allclose(line.get_xdata(), wanted)
    assert ax.get_xlabel()
    path = tmp_path / "model.npz"
    np.savez(path, kernel=A)
    from_file = plot.report(path)
    np.testing.assert_allclose(from_file.images[0].get_array()[0], rows[0], atol=1e-12)


# ----------------------------------------------------------------------------------- the house


DRAWN = {
    "spectrum": plot.spectrum,
    "spectrum_history": lambda a, **more: plot.spectrum_history([a], **more),
    "ellipse": plot.ellipse,
    "subspaces": plot.subspaces,
    "low_rank_images": lambda a, **more: plot.low_rank_images(a, [1], **more),
    "singular_vectors": lambda a, **more: plot.singular_vectors(a, 1, **more),
    "gap_map": plot.gap_map,
    "report": lambda a, **more: plot.report({"w": a}, **more),
}
SQUARE = np.array([[0.5, 0.2], [0.1, 0.4]])


def test_every_picture_is_tested_here():
    assert set(DRAWN) | {"PALETTE", "style"} == set(plot.__all__)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_into_the_axes_it_is_given(name):
    _, axes = pyplot.subplots(1, 2)
    assert DRAWN[name](SQUARE, ax=axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert len(pyplot.get_fignums()) == 1
    with pytest.raises(TypeError, match=r"`ax` must be None or one Axes, got ndarray of shape"):
        DRAWN[name](SQUARE, ax=axes)


@pytest.mark.parametrize("name", DRAWN)
def test_refuses_what_it_cannot_draw(name):
    draw = DRAWN[name]
    with pytest.raises(TypeError, match=r"traced"):
        jax.jit(lambda a: draw(a) and a)(SQUARE)
    batched = np.stack([SQUARE] * 2)
    if name != "report":  # leaves of more than two axes are chosen by `axes`
        with pytest.raises(ValueError, match=r"must have shape .*got .*\(2, 2, 2\)"):
            draw(batched)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"must be finite, got .*NaN or Inf"):
            draw(np.where(np.eye(2), bad, SQUARE))
    if name in ("ellipse", "low_rank_images", "singular_vectors"):
        with pytest.raises(TypeError, match=r"must be real, got dtype complex128"):
            draw(SQUARE + 0j)
    if name not in ("report", "spectrum_history"):
        with pytest.raises(TypeError, match=r"must be an array, got list"):
            draw([[1.0, 2.0], [3.0, 4.0]])
        with pytest.raises(ValueError, match=r"\(0, 2\)"):
            draw(np.zeros((0, 2)))
    assert not pyplot.get_fignums()  # refused before a figure is made


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: plot.spectrum(A, kind="scree"), ValueError, "`kind` must be one of 'values'"),
        (lambda: plot.spectrum({}), ValueError, "`a` must name one matrix"),
        (lambda: plot.spectrum({"w": A, "b": A[None]}), ValueError, r"`a\['b'\]` must have shape"),
        (lambda: plot.spectrum(np.array([1.0, -1.0])), ValueError, "singular values >= 0, got -1"),
        (lambda: plot.spectrum(np.array([1j])), TypeError, "must be real"),
        (
            lambda: plot.spectrum_history(np.abs(A), steps=[1.0]),
            ValueError,
            r"`steps` must have shape \(6,\), got \(1,\)",
        ),
        (
            lambda: plot.spectrum_history(np.abs(A), steps=S),
            ValueError,
            r"`steps` must have shape \(6,\)",
        ),
        (lambda: plot.spectrum_history([A, A[:3]]), ValueError, "matrices of one shape"),
        (lambda: plot.spectrum_history([]), ValueError, "one matrix or more"),
        (lambda: plot.spectrum_history(np.abs(A), k=5), ValueError, "1 <= k <= 4"),
        (lambda: plot.ellipse(A), ValueError, r"must have shape \(2, 2\), got \(6, 4\)"),
        (lambda: plot.ellipse(SQUARE, step=4), ValueError, "0 <= step <= 3"),
        (lambda: plot.ellipse(SQUARE, shape=A), ValueError, r"\(2, p\)"),
        (lambda: plot.subspaces(A, rtol=2.0), ValueError, "rtol"),
        (lambda: plot.low_rank_images(A, 3), TypeError, "`ranks` must be a list of ints, got int"),
        (lambda: plot.low_rank_images(A, [9]), ValueError, "1 <= r <= 4, got 9"),
        (lambda: plot.low_rank_images(A[..., None], [1]), ValueError, "3 or 4"),
        (lambda: plot.singular_vectors(A, 9), ValueError, "1 <= k <= 4"),
        (lambda: plot.singular_vectors(A, side="top"), ValueError, "`side` must be one of"),
        (lambda: plot.singular_vectors(A, shape=(2, 2)), ValueError, "of 6 entries in all"),
        (lambda: plot.report({"b": S}), ValueError, "none of two axes"),
        (lambda: plot.report({"w": A}, where="kernel"), ValueError, "kernel"),
        (lambda: plot.report("absent.npz"), FileNotFoundError, "absent.npz"),
    ],
)
def test_bad_arguments(call, error, said):
    with pytest.raises(error, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_style_leaves_other_settings_as_they_became():
    before = mpl.is_interactive()
    try:
        with plot.style():
            mpl.interactive(not before)  # as a notebook's backend does when it is loaded
        assert mpl.is_interactive() is not before
    finally:
        mpl.interactive(before)


def test_style_is_lent_and_given_back():
    with plot.style():
        assert not mpl.rcParams["axes.spines.top"]
        assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(plot.PALETTE)


def test_importing_needs_no_matplotlib():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import jax.numpy as jnp, jaxsvd.plot\n"
        "try:\n    jaxsvd.plot.spectrum(jnp.eye(2))\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = 'plot.spectrum: needs matplotlib; run pip install "jaxsvd[demo]" to install it'
    assert done.stdout.strip() == wanted
