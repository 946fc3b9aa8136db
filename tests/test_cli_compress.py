"""`report` and `compress` on checkpoints, and files of compressed parameters."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxsvd import _files, compress
from jaxsvd.cli import main
from jaxsvd.operators import LowRank
from tests.test_lora import X, Y, equinox, haiku, linen, nnx

safetensors = pytest.importorskip("safetensors.numpy")

ROOT = Path(__file__).resolve().parent.parent
BF16, F8 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)


def arrays(dtype=np.float32):
    """A decaying matrix, a flat one in half precision, one in a quarter, and what is no matrix."""
    rng = np.random.default_rng(0)
    decay = (1.0 + np.arange(16)) ** -2
    return {
        "a.weight": (rng.normal(size=(24, 16)) * decay).astype(dtype),
        "b.weight": rng.normal(size=(24, 16)).astype(BF16),
        "c.weight": (rng.normal(size=(24, 16)) * decay[::-1]).astype(F8),
        "a.bias": np.ones(24, dtype),
        "steps": np.array(7),
    }


@pytest.fixture(params=[".safetensors", ".npz"])
def model(request, tmp_path):
    path = tmp_path / f"model{request.param}"
    _files.write_checkpoint(path, arrays(), {"format": "pt"})
    return path


def run(capsys, *argv):
    """Standard output of a command that must succeed."""
    assert main([str(x) for x in argv]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def refused(capsys, *argv):
    """The sentence on stderr of a command that must exit with 2."""
    try:
        code = main([str(x) for x in argv])
    except SystemExit as error:
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err


def same_bits(x, y):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert x.tobytes() == y.tobytes()


# ------------------------------------------------------------------------------------- files


@pytest.mark.x32
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_every_dtype_comes_back(suffix, tmp_path):
    names = [x for x in _files._DTYPES.values() if suffix == ".npz" or x != "float4_e2m1fn"]
    given = {name: np.arange(6).reshape(2, 3).astype(jnp.dtype(name)) for name in names}
    given |= {"empty": np.zeros((0, 3), np.float32), "file": np.float32(1), "a/b": np.ones(2)}
    _files.write_checkpoint(tmp_path / f"x{suffix}", given, {"key": "välue"})
    found, metadata = _files.read_checkpoint(tmp_path / f"x{suffix}")
    assert set(found) == set(given)
    assert metadata == {"key": "välue"}
    for name, x in given.items():
        same_bits(found[name], x)


def test_files_of_others(tmp_path):
    given = {"w": np.ones((3, 2), BF16), "v": np.arange(4.0)}
    safetensors.save_file(given, tmp_path / "x.safetensors")
    np.savez(tmp_path / "x.npz", **given)
    for name in ("x.safetensors", "x.npz"):
        found, metadata = _files.read_checkpoint(tmp_path / name)
        assert not metadata
        same_bits(found["w"], given["w"])
        same_bits(found["v"], given["v"])
    _files.write_checkpoint(tmp_path / "y.safetensors", given, {})
    assert safetensors.load_file(tmp_path / "y.safetensors")["v"].tolist() == [0, 1, 2, 3]


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("old")

    def stop():
        with _files.atomic(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert [x.name for x in tmp_path.iterdir()] == ["x.npz"]
    assert path.read_text() == "old"
    with _files.atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_save_and_load(suffix, tmp_path):
    rng = np.random.default_rng(1)
    params = {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(12, 10)), jnp.bfloat16)},
        "stack": jnp.asarray(rng.normal(size=(2, 8, 9)), jnp.float32),
        "conv": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32),
        "bias": jnp.ones(3, jnp.float32),
    }
    axes = {"stack": (-2, -1), "conv": ((0, 1, 2), 3)}
    small, _ = compress.to_budget(params, 0.5, axes=axes)
    path = tmp_path / f"x{suffix}"
    compress.save(small, path, metadata={"of": "me"})
    with pytest.raises(FileExistsError, match="save: `path` must not exist without force=True"):
        compress.save(small, path)
    found, metadata = _files.read_checkpoint(path)
    assert {"dense/kernel.U", "stack.s", "conv.Vh", "bias"} <= set(found)
    assert metadata["of"] == "me"
    assert json.loads(metadata["jaxsvd.compress"])["leaves"]["conv"]["rows"] == [0, 1, 2]
    flat = compress.load(path)
    assert isinstance(flat["dense/kernel"], LowRank)
    shapes = jax.eval_shape(lambda: params)
    for like in (params, small, shapes):
        again = compress.load(path, like)
        jax.tree.map(same_bits, again, small)
        jax.tree.map(same_bits, compress.densify(again), compress.densify(small))
    for other, message in (
        ({"dense": params["dense"]}, "got leaf 'bias' not in `like`"),
        ({**params, "x": 1}, "got leaf 'x' not in the file"),
        ({**params, "bias": jnp.ones(4)}, r"got shape \(3,\) for leaf 'bias' of shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            compress.load(path, other)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("framework", [equinox, linen, nnx, haiku])
def test_in_frameworks(framework, tmp_path):
    """A compressed model runs and trains inside jit, and comes back from safetensors."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, call, where, _ = framework()
        metrics = compress.collect_gram(call, params, [X], where)
        small, report = compress.to_budget(params, 0.9, metrics, where)
        assert any(leaf.rank is not None for leaf in report.leaves)
        optimizer = optax.adam(1e-2)

        @jax.jit
        def step(small, state):
            def loss(small):
                return jnp.mean((call(compress.densify(small), X) - Y) ** 2)

            value, gradient = jax.value_and_grad(loss)(small)
            updates, state = optimizer.update(gradient, state)
            return optax.apply_updates(small, updates), state, value

        state, values = optimizer.init(small), []
        for _ in range(3):
            small, state, value = step(small, state)
            values.append(float(value))
        assert values[2] < values[1] < values[0]
        compress.save(small, tmp_path / "small.safetensors")
        again = compress.load(tmp_path / "small.safetensors", params)
        same_bits(call(compress.densify(again), X), call(compress.densify(small), X))


# ------------------------------------------------------------------------------------ report


def test_report(model, capsys, tmp_path):
    page_at = tmp_path / "r.html"
    text = run(capsys, "report", model, "--html", page_at)
    rows = {line.split()[0]: line for line in text.splitlines() if line.count(".weight")}
    for name, x in arrays().items():
        if name.endswith(".weight"):
            s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
            assert float(re.split(r"  +", rows[name])[3]) == pytest.approx(s[0], rel=1e-3)
    found = json.loads(run(capsys, "report", model, "--json"))
    assert found["parameters"] == 3 * 24 * 16 + 24 + 1
    assert found["others"] == {"a.bias": [24], "steps": []}
    row = found["matrices"][0]
    s = np.linalg.svd(np.asarray(arrays()["a.weight"], np.float64), compute_uv=False)
    energy = np.cumsum(s**2) / np.sum(s**2)
    assert row["rank99"] == 1 + np.searchsorted(energy, 0.99)
    assert row["stable_rank"] == pytest.approx(np.sum(s**2) / s[0] ** 2, rel=1e-4)
    assert row["share99"] == row["rank99"] * (24 + 16 + 1) / (24 * 16)
    assert [row["dtype"] for row in found["matrices"]] == ["float32", "bfloat16", "float8_e4m3fn"]
    page = (page_at).read_text()
    body = page.removeprefix("<!doctype html>").replace('<meta charset="utf-8">', "")
    tree = ET.fromstring(body)  # well formed
    assert len(list(tree.iter("svg"))) == 2 + 3
    assert not re.search(r"<script|https?://|src=", page)
    assert "exists already; --force" in refused(capsys, "report", model, "--html", page_at)
    some = run(capsys, "report", model, "--top=1", "--where=^a", "--html", page_at, "--force")
    assert some.count(".weight") == 1


def test_report_marks_nan(capsys, tmp_path):
    given = arrays()
    given["b.weight"][3, 4] = np.nan
    _files.write_checkpoint(tmp_path / "x.npz", given, {})
    text = run(capsys, "report", tmp_path / "x.npz")
    assert re.search(r"b.weight +24 x 16 +bfloat16 +NaN", text)
    assert "NaN or Inf in b.weight" in text
    row = json.loads(run(capsys, "report", tmp_path / "x.npz", "--json"))["matrices"][1]
    assert (row["finite"], row["sigma"], row["share99"]) == (False, None, None)


def test_report_of_kernels(capsys, tmp_path):
    _files.write_checkpoint(tmp_path / "x.npz", {"k": np.ones((3, 3, 2, 5), np.float32)}, {})
    assert "`params` must hold a matrix" in refused(capsys, "report", tmp_path / "x.npz")
    text = run(capsys, "report", tmp_path / "x.npz", "--axes", "0,1,2:3")
    assert "18 x 5" in text
    assert "k[2, 2]" in run(capsys, "report", tmp_path / "x.npz", "--axes=-2:-1")
    assert "--axes must be such as" in refused(capsys, "report", tmp_path / "x.npz", "--axes", "1")


# ---------------------------------------------------------------------------------- compress


def test_compress(model, capsys, tmp_path):
    output = tmp_path / f"small{model.suffix}"
    before = model.read_bytes()
    dry = run(capsys, "compress", model, "-o", output, "--budget", "0.5", "--dry-run")
    assert dry.endswith("dry run: nothing written\n")
    assert not output.exists()
    text = run(capsys, "compress", model, "-o", output, "--budget", "0.5")
    assert dry.splitlines()[:-1] == text.splitlines()[:-1]
    assert model.read_bytes() == before
    kept, total = re.search(r"([\d,]+) of ([\d,]+) parameters kept", text).groups()
    found, metadata = _files.read_checkpoint(output)
    assert metadata["format"] == "pt"
    assert sum(x.size for x in found.values()) == int(kept.replace(",", ""))
    assert int(kept.replace(",", "")) <= 0.5 * int(total.replace(",", ""))
    loaded = compress.load(output)
    for name, x in arrays().items():
        leaf = loaded[name]
        if not isinstance(leaf, LowRank):
            same_bits(found[name], x)
            continue
        # The best of this rank, up to the precision that the factors are stored in.
        W, rank = np.asarray(x, np.float64), leaf.s.shape[0]
        s = np.linalg.svd(W, compute_uv=False)
        error = np.linalg.norm(W - np.asarray(compress.densify(leaf), np.float64))
        eps = 1e-6 if x.dtype == np.float32 else 1e-2
        assert error <= np.sqrt(np.sum(s[rank:] ** 2)) + eps * np.linalg.norm(s)
        assert leaf.U.dtype == (BF16 if x.dtype == F8 else x.dtype)
    assert any(isinstance(leaf, LowRank) for leaf in loaded.values())
    assert "rank" in run(capsys, "report", output)
    assert "exists already; --force" in refused(
        capsys, "compress", model, "-o", output, "--budget", "0.4"
    )
    run(capsys, "compress", model, "-o", output, "--budget", "300", "--force")
    assert "is compressed already" in refused(
        capsys, "compress", output, "-o", tmp_path / "x.npz", "--budget", "0.5"
    )


def test_compress_by_metrics(capsys, tmp_path):
    rng = np.random.default_rng(2)
    params = {"w": rng.normal(size=(12, 16)), "v": rng.normal(size=(16, 12))}
    X = rng.normal(size=(40, 12)) * 10.0 ** -np.arange(12)

    def model(params, x):
        return x @ params["w"], x @ params["v"].T  # the inputs of v are its columns

    metrics = compress.collect_gram(model, params, [jnp.asarray(X)])
    compress.save_metrics(metrics, tmp_path / "stats.npz")
    _files.write_checkpoint(tmp_path / "m.npz", params, {})
    argv = ["compress", tmp_path / "m.npz", "-o", tmp_path / "s.npz", "--budget", "0.5"]
    run(capsys, *argv, "--metrics", tmp_path / "stats.npz", "--allocation", "uniform")
    wanted, _ = compress.to_budget(params, 0.5, metrics, allocation="uniform")
    for name, x in compress.densify(compress.load(tmp_path / "s.npz")).items():
        np.testing.assert_allclose(x, compress.densify(wanted)[name], rtol=1e-5, atol=1e-8)
        assert x.dtype == params[name].dtype  # double precision stays, whatever JAX is set to
    np.savez(tmp_path / "few.npz", w=np.ones(12))
    assert "got none for 'v'" in refused(
        capsys, *argv, "--metrics", tmp_path / "few.npz", "--force"
    )


def test_compress_shows_a_bar(capsys, monkeypatch, tmp_path):
    pytest.importorskip("tqdm")
    _files.write_checkpoint(tmp_path / "m.npz", arrays(), {})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["report", str(tmp_path / "m.npz")]) == 0
    assert "singular values" in capsys.readouterr().err


WRITERS = {  # where the process dies, what it was about to write, how
    "compress": (
        "np.lib.format.write_array",
        "s.npz",
        "main(['compress', 'm.npz', '-o', 's.npz', '--budget', '0.5', '--force'])",
    ),
    "report": ("os.fsync", "s.html", "main(['report', 'm.npz', '--html', 's.html', '--force'])"),
    "a run": ("np.lib.format.write_array", "s", "drive.save('s', np.ones(3), 'a label')"),
    "safetensors": (
        "os.fsync",
        "s.safetensors",
        "_files.write_checkpoint('s.safetensors', {'w': np.ones(3)}, {})",
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_process_that_is_killed_leaves_the_file_of_before(tmp_path, writer):
    """The file is there whole, or not at all: the process dies while it writes."""
    where, written, call = WRITERS[writer]
    _files.write_checkpoint(tmp_path / "m.npz", arrays(), {})
    (tmp_path / written).write_text("old")
    code = (
        "import os, signal, sys, numpy as np; from jaxsvd import _files; "
        "from jaxsvd.algorithms import drive; from jaxsvd.cli import main\n"
        f"{where} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n{call}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert process.returncode == -9, process.stderr
    assert (tmp_path / written).read_text() == "old"
    assert set(_files.read_checkpoint(tmp_path / "m.npz").arrays) == set(arrays())


# --------------------------------------------------------------------------------- bad input


def corrupt(path, data):
    path.write_bytes(data)
    return path


def header(dtype):
    text = json.dumps({"w": {"dtype": dtype, "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def with_nan():
    given = arrays()
    given["b.weight"][0, 0] = np.nan
    return given


BAD = {
    "missing": (lambda d: d / "no.npz", "no such file"),
    "folder": (lambda d: d, "got a folder"),
    "suffix": (lambda d: corrupt(d / "x.pt", b""), r"named .safetensors or .npz, got '.pt'"),
    "no zip": (lambda d: corrupt(d / "x.npz", b"junk"), "wanted an .npz file of arrays"),
    "empty": (lambda d: corrupt(d / "x.safetensors", b""), "wanted a whole .safetensors file"),
    "dtype": (lambda d: corrupt(d / "x.safetensors", header("Q5")), "unknown variant `Q5`"),
    "bits": (lambda d: corrupt(d / "x.safetensors", header("F4")), "wanted a whole|got F4"),
    "pickle": (
        lambda d: np.savez(d / "x.npz", w=np.array([{}], object)) or d / "x.npz",
        "Object arrays cannot be loaded",
    ),
    "strings": (
        lambda d: np.savez(d / "x.npz", w=np.array(["a"])) or d / "x.npz",
        "leaf 'w' must hold numbers, got dtype <U1",
    ),
    "unnamed": (
        lambda d: np.savez(d / "x.npz", w=np.ones((2, 2), F8)) or d / "x.npz",
        "leaf 'w' must be of a dtype that .npz can name",
    ),
    "nothing": (
        lambda d: _files.write_checkpoint(d / "x.npz", {}, {}) or d / "x.npz",
        "got a file without arrays",
    ),
    "no matrix": (
        lambda d: _files.write_checkpoint(d / "x.npz", {"b": np.ones(3)}, {}) or d / "x.npz",
        "must hold a matrix, got none of two axes; the paths are b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case, capsys, tmp_path):
    make, message = BAD[case]
    path = make(tmp_path)
    assert re.search(message, refused(capsys, "report", path))
    output = tmp_path / "out.npz"
    assert re.search(message, refused(capsys, "compress", path, "-o", output, "--budget", "0.5"))
    assert not output.exists()


def test_truncated_files(model, capsys, tmp_path):
    data = model.read_bytes()
    for length in (4, 40, len(data) // 2, len(data) - 1):
        path = corrupt(tmp_path / f"cut{model.suffix}", data[:length])
        assert "wanted a" in refused(capsys, "report", path)


def test_bad_requests(model, capsys, tmp_path):
    out = tmp_path / "out.npz"

    def sentence(*options, output=out, path=model):
        return refused(capsys, "compress", path, "-o", output, *options)

    budget = ("--budget", "0.5")
    assert "at least 148 of 1177 parameters, the smallest possible, got 0.1" in sentence(
        "--budget", "0.1"
    )
    assert "must satisfy 0 < budget < 1, got 1.5" in sentence("--budget", "1.5")
    assert "--budget must be a share" in sentence("--budget", "half")
    assert "is the input" in sentence(*budget, "--force", output=model)
    assert "in a folder that exists" in sentence(*budget, output=tmp_path / "no" / "x.npz")
    assert "named .safetensors or .npz, got '.bin'" in sentence(*budget, output=tmp_path / "x.bin")
    assert "found in the name of a matrix, got 'none'; they are a.w" in sentence(
        *budget, "--where", "none"
    )
    assert "--output" in refused(capsys, "compress", model, *budget)
    assert "--top must be 1 or more" in refused(capsys, "report", model, "--top", "0")
    assert ".html file" in refused(capsys, "report", model, "--html", tmp_path / "x.txt")
    nan = tmp_path / "nan.npz"
    _files.write_checkpoint(nan, with_nan(), {})
    assert "got NaN or Inf in leaf 'b.weight'" in sentence(*budget, path=nan)
    assert not out.exists()
