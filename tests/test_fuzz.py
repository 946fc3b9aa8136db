"""A few hundred damaged files of every kind: read, or refused in one sentence (`benchmarks.fuzz`).

A hundred thousand are read by `.ci/long`. What it once found stands here file by file.
"""

import io
import json
import zipfile

import jax
import numpy as np
import pytest

from benchmarks import fuzz
from jaxsvd import _files, compress
from jaxsvd.algorithms import drive
from jaxsvd.operators import RowBlocks


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=[target.name for target in fuzz.TARGETS])
def test_damaged_files(target):
    count = 12 if target.name == "command line" else 80
    found = fuzz.fuzz(target, count, seed=7)
    assert not found.wrong
    assert found.refused > 0
    assert found.read + found.refused == count


def test_faults_are_noticed(tmp_path):
    path, other = tmp_path / "x.npz", tmp_path.parent / "other.txt"
    np.savez(path, w=np.array([fuzz.Bomb()], object))
    other.write_text("secret")

    def stays_silent_about_the_name(path):
        raise ValueError("damaged")

    def loads_objects(path):
        np.load(path, allow_pickle=True)["w"]

    assert "names no file" in fuzz.verdict(stays_silent_about_the_name, path)
    assert "unpickles" in fuzz.verdict(loads_objects, path)
    assert "opens" in fuzz.verdict(lambda path: other.read_text(), path)
    assert "KeyError" in fuzz.verdict(lambda path: {}["x"], path)


def archive(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)


def array(x) -> bytes:
    out = io.BytesIO()
    np.save(out, x)
    return out.getvalue()


def test_a_member_of_an_archive_that_is_no_array(tmp_path):
    path = tmp_path / "x.npz"
    archive(path, w__npy=array(np.eye(2)), readme__txt=b"hello")
    with pytest.raises(ValueError, match=r"x.npz: wanted an .npz file of arrays, got .*readme.txt"):
        _files.read_checkpoint(path)


@pytest.mark.parametrize(
    "metadata",
    [
        b"[1, 2]",
        b"{",
        b'{"dtypes": "["}',
        b'{"dtypes": 3}',
        b'{"a": 1}',
        b'{"dtypes": "{\\"w\\": 1}"}',
    ],
)
def test_metadata_that_is_none(metadata, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, w=np.eye(2), __metadata__=np.frombuffer(metadata, np.uint8))
    with pytest.raises(ValueError, match=r"x.npz: __metadata__ must hold JSON of texts, got"):
        _files.read_checkpoint(path)


@pytest.mark.parametrize("dtype", ["float64", "O", "float8_e4m3fn", "no dtype"])
def test_a_dtype_that_does_not_fit_the_bytes(dtype, tmp_path):
    path = tmp_path / "x.npz"
    text = json.dumps({"dtypes": json.dumps({"w": dtype})}).encode()
    np.savez(path, w=np.zeros((2, 2), "V2"), __metadata__=np.frombuffer(text, np.uint8))
    with pytest.raises(ValueError, match=r"x.npz: leaf 'w' must be bytes of its dtype, got"):
        _files.read_checkpoint(path)


def test_headers_of_numpy_files_that_are_no_python(tmp_path):
    path = tmp_path / "x.npy"
    for header in (b"{'descr': (", b"(" * 5000, b"{'descr': '<f8', 'shape': (-1, 3)}", b"\xff" * 9):
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(ValueError, match=r"RowBlocks: file 'x.npy' must be a .npy file, got"):
            RowBlocks(path)


def test_a_run_is_not_taken_up_from_other_arrays(tmp_path):
    path = tmp_path / "run.npz"
    state = (np.ones((3, 2), np.float32), np.zeros(3, np.float32))
    for other in (
        (np.ones(3, np.float32), state[1]),
        (np.ones((3, 2)), state[1]),
        state[:1],
        (*state, state[0]),
    ):
        drive.save(path, other, "a run")
        with pytest.raises(ValueError, match="must hold the arrays of this computation"):
            drive.load(path, state, "a run")
    drive.save(path, state, "a run")
    assert [x.name for x in tmp_path.iterdir()] == ["run.npz"]
    again = drive.load(path, state, "a run")
    assert all(np.array_equal(x, y) for x, y in zip(again, state, strict=True))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="must be a file that a stopped run left"):
        drive.load(path, state, "a run")


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000])
def test_ranks_do_not_depend_on_the_units_of_the_values(scale):
    """Squares of 1e300 overflow and those of 1e-300 vanish; the choice is the same."""
    rng = np.random.default_rng(0)
    spectra = [np.sort(rng.random(6))[::-1] for _ in range(3)]
    shapes = [(8, 6)] * 3
    found = compress.allocate([scale * x for x in spectra], shapes, 90)
    assert found.ranks == compress.allocate(spectra, shapes, 90).ranks


def test_values_near_the_largest_number_are_compressed_without_a_warning():
    params = {"w": np.diag([2.0**1000, 2.0**999, 1.0, 1.0, 1.0, 1.0])}
    with jax.enable_x64(True):
        _, report = compress.to_budget(params, 0.75)
    assert report.leaves[0].rank == 2
    assert report.leaves[0].error == 0
