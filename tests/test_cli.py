"""The command line: the demo in a process of its own, `info` and all errors in this one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsvd
from jaxsvd.algorithms.dense import Request
from jaxsvd.algorithms.router import route
from jaxsvd.cli import demo, experiments, info, main

ROOT = Path(__file__).resolve().parent.parent


def exit_code(argv):
    """What the process would exit with; argparse raises, our own commands return."""
    try:
        return main(argv)
    except SystemExit as error:
        return error.code


def refused(capsys, *argv):
    """The sentence on stderr of a command that must exit with 2."""
    assert exit_code(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """One run with few steps: (process, path of its picture)."""
    path = tmp_path_factory.mktemp("demo") / "out.png"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # one device, as a user has
    environment.pop("JAX_ENABLE_X64", None)
    command = [sys.executable, "-m", "jaxsvd", "demo", "--steps", "12", "--output", str(path)]
    process = subprocess.run(
        command, env=environment, cwd=path.parent, capture_output=True, text=True, timeout=300
    )
    return process, path


def line(text, start):
    """The columns after the label of the one line that starts with it."""
    found = [row.strip() for row in text.splitlines() if row.strip().startswith(start)]
    assert len(found) == 1, f"{start!r} in\n{text}"
    return found[0].removeprefix(start).split()


def test_demo_succeeds_and_says_what_it_ran_on(demo_run):
    process, _ = demo_run
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.startswith(f"jaxsvd {jaxsvd.__version__} | jax {jax.__version__} | ")
    last = process.stdout.splitlines()[-1]
    assert re.fullmatch(r"all checks passed; picture in .*out\.png; [\d.]+ s in total", last)
    assert "12/12" in process.stderr  # the progress bar
    assert "Warning" not in process.stderr


def test_demo_learns_something_that_holds_on_digits_it_has_not_seen(demo_run):
    before, after, gain, *_ = line(demo_run[0].stdout, "accuracy on 797 held-out digits")
    assert float(after.rstrip("%")) > float(before.rstrip("%")) + 2
    assert float(gain) > 2
    old, new = line(demo_run[0].stdout, "loss")
    assert float(new) < float(old)


@pytest.mark.parametrize("rank", experiments.RANKS)
def test_demo_measures_the_error_of_eckart_and_young(demo_run, rank):
    storage, promised, measured, psnr = line(demo_run[0].stdout, f"{rank} ")
    assert float(storage.rstrip("%")) == pytest.approx(100 * rank * 1068 / (427 * 640), abs=0.05)
    assert float(promised) == pytest.approx(float(measured), abs=2e-6)
    assert 15 < float(psnr) < 40


def test_demo_shows_the_gradient_that_is_nan_elsewhere(demo_run):
    (exact,) = line(demo_run[0].stdout, "exact")
    assert line(demo_run[0].stdout, "jnp.linalg.svd")[0] == "nan"
    for name in ("jaxsvd.svd", "jaxsvd.core_svd"):
        entry, at_the_tie, _ = line(demo_run[0].stdout, name)
        assert float(entry) == pytest.approx(float(exact), rel=1e-6)
        assert float(at_the_tie) < 1e-6


def test_demo_writes_a_picture_with_something_in_every_part(demo_run):
    image = pytest.importorskip("matplotlib.image").imread(demo_run[1])
    assert image.shape[0] > 800
    assert image.shape[1] > 1200
    for rows in np.array_split(image[..., :3], 3, axis=0):
        for part in np.array_split(rows, 3, axis=1):
            assert part.std() > 0.05


def test_the_closed_form_of_the_demo_is_a_finite_difference():
    """The oracle of part 3 against NumPy alone, at the tie, where it must not divide by zero."""
    A, b, h = np.diag([2, 2, 1, 0.5]), np.arange(1.0, 5.0), 1e-5

    def energy(A):
        return np.sum((np.linalg.svd(A)[0][:, :2].T @ b) ** 2)

    steps = [h * np.eye(1, 16, i).reshape(4, 4) for i in range(16)]
    differences = [(energy(A + step) - energy(A - step)) / (2 * h) for step in steps]
    exact = experiments._energy_gradient(A)
    np.testing.assert_allclose(exact.ravel(), differences, atol=1e-8)


def test_demo_names_each_result_that_is_wrong():
    zeros = np.zeros((4, 4))
    digits = experiments.Digits(
        (1, 1), zeros, zeros, zeros, [], [1.0, 1.0], [], [0.8, 0.8], [], 0.9, np.nan, 1.0
    )
    photo = experiments.Photo(zeros, [], zeros, [], [0.1], [0.2], [])
    wrong = {name: zeros + np.nan for name in experiments.FACTORS}
    found = list(demo.failures(digits, photo, experiments.Tie(zeros, wrong, wrong), demo.STEPS))
    assert [sentence.split(":")[0] for sentence in found] == [
        *["digits"] * 3,
        "photograph",
        *["gradient"] * 3,
    ]


@pytest.fixture
def broken_demo(monkeypatch):
    """The demo with its experiments replaced; ``demo.failures`` says that one went wrong."""
    for name in ("learn_digits", "compress_photo", "differentiate_tie"):
        monkeypatch.setattr(demo, name, lambda *_: None)
    monkeypatch.setattr(demo, "table", lambda *_: "the table")
    monkeypatch.setattr(demo, "picture", lambda *_: b"the picture")
    monkeypatch.setattr(demo, "failures", lambda *_: iter(["digits: a check"]))


@pytest.mark.usefixtures("broken_demo")
def test_demo_exits_with_1_when_a_check_fails(capsys, tmp_path):
    assert main(["demo", "--output", str(tmp_path / "a.png")]) == 1
    out = capsys.readouterr().out
    assert "FAILED  digits: a check" in out
    assert "1 check failed" in out
    assert (tmp_path / "a.png").read_bytes() == b"the picture"


@pytest.mark.usefixtures("broken_demo")
def test_demo_whose_picture_cannot_be_written_in_the_end(capsys, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["demo", "--output", str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert "the table" in out  # the figures are not lost with the picture
    assert err.count("\n") == 1
    assert "No space left" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--steps", "0"], "--steps must be 1 or more, got 0"),
        (["--steps", "many"], "'many'"),
        (["--output", "no/such/folder/a.png"], "no/such/folder/a.png"),
        (["--output", "picture.jpg"], ".png"),
        (["--output", "."], "'.'"),
    ],
)
def test_demo_refuses_before_it_works(capsys, argv, said):
    assert said in refused(capsys, "demo", *argv)


def test_demo_refuses_a_file_that_may_not_be_written(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert "may be written" in refused(capsys, "demo", "--output", str(tmp_path / "a.png"))


def test_demo_names_what_is_missing_and_how_to_get_it(capsys, monkeypatch):
    found = demo.importlib.util.find_spec

    def without(name):
        return None if name in ("matplotlib", "sklearn") else found(name)

    monkeypatch.setattr(demo.importlib.util, "find_spec", without)
    message = refused(capsys, "demo")
    assert "matplotlib, scikit-learn" in message
    assert 'pip install -e ".[demo]"' in message
    with pytest.raises(ImportError, match="needs matplotlib, scikit-learn"):
        demo.run(Path("a.png"), 1, "")


@pytest.mark.x32
def test_info_prints_versions_devices_and_the_table(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert line(out, "jaxsvd ") == [jaxsvd.__version__]
    assert line(out, "jax ") == [jax.__version__]
    assert line(out, "x64 ") == ["on" if jax.config.jax_enable_x64 else "off"]
    assert f"{len(jax.devices())} x " in out
    for shape, _ in info.TYPICAL:
        assert route(shape, Request(), jax.default_backend()).name in line(
            out, " x ".join(map(str, shape)) + " "
        )


@pytest.mark.parametrize(
    ("argv", "shape"),
    [
        (["40", "7"], (40, 7)),
        (["3", "3", "--batch", "1000"], (1000, 3, 3)),
        (["0", "7"], (0, 7)),
    ],
)
def test_info_gives_the_route_of_a_shape(capsys, argv, shape):
    assert main(["info", *argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = route(shape, Request(), jax.default_backend())
    assert found["algorithms"] == [
        {"shape": list(shape), "note": "", "algorithm": row.name, "why": row.why}
    ]
    assert found["versions"]["jax"] == jax.__version__
    assert found["platform"] == jax.default_backend()
    assert main(["info", *argv]) == 0
    out = capsys.readouterr().out
    assert line(out, " x ".join(map(str, shape)) + " ")[0] == row.name


@pytest.mark.x32
@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16, computed in float32"),
        ("complex64", "complex64"),
        ("float64", None),
        ("int32", None),
    ],
)
def test_info_says_in_which_dtype_the_work_is_done(capsys, dtype, said):
    x64 = jax.config.jax_enable_x64
    if said is None:
        said = {
            ("float64", True): "float64",
            ("float64", False): "float64 becomes float32 because x64 is off",
            ("int32", True): "int32, computed in float32",
            ("int32", False): "int32, computed in float32",
        }[dtype, x64]
    assert main(["info", "5", "4", "--dtype", dtype]) == 0
    assert re.search(rf"^matrix dtype +{said}", capsys.readouterr().out, re.MULTILINE)


def test_info_works_where_jax_finds_no_device(monkeypatch):
    def none():
        raise RuntimeError("no driver")

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setattr(jax, "default_backend", none)
    found = info.collect([((2, 2), "")], "float32")
    assert found["devices"] == ["none: no driver"]
    assert found["platform"] == "none"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["-3", "4"], "got -3 x 4"),
        (["3"], "both M and N"),
        (["3", "4", "5"], "got 3 sizes"),
        (["3", "four"], "'four'"),
        (["3", "4", "--batch", "-1"], "got -1 x 3 x 4"),
        (["--batch", "5"], "--batch B needs"),
        (["3", "4", "--dtype", "float99"], "'float99'"),
        (["3", "4", "--dtype", "str"], "'str'"),
        (["3", "4", "--colour"], "--colour"),
    ],
)
def test_info_refuses_in_one_sentence(capsys, argv, said):
    assert said in refused(capsys, "info", *argv)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys):
    message = refused(capsys, "dmeo")
    assert "'dmeo'" in message
    assert "demo" in message
    assert "info" in message


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "python -m jaxsvd info 1000 50"),
        (["--help"], "python -m jaxsvd info 1000 50"),
        (["demo", "--help"], "learn a weight for each of the 64 pixels"),
        (["info", "--help"], "--batch B"),
    ],
)
def test_help_teaches(capsys, argv, said):
    assert exit_code(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m jaxsvd")
    assert said in out


def test_import_and_info_load_nothing_heavy():
    code = (
        "import sys, jaxsvd, jaxsvd.cli; jaxsvd.cli.main(['info', '4', '4']); "
        "print([m for m in ('matplotlib', 'sklearn', 'tqdm') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[]"
