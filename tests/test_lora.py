"""Adapters: equal to the base at the start, exact in all conversions, alike in every framework.

Oracles: NumPy's SVD in double precision, the formulas of the papers in NumPy, PEFT's documented
layout.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsvd import lora
from tests.helpers import (
    FLOAT32,
    FLOAT64,
    assert_same_bits,
    assert_within,
    double,
    gaussian,
    with_values,
)

KEY = jax.random.key(0)
METHODS = ["standard", "pissa", "milora", "eva"]
KINDS = [{}, {"rslora": True, "alpha": 3.0}, {"dora": True}]
BOTH = [FLOAT32, FLOAT64]


def model(dtype=np.float64):
    """A kernel, a stack of kernels, a convolution, and leaves without an adapter."""
    return {
        "dense": {"kernel": jnp.asarray(gaussian((7, 5), dtype)), "bias": jnp.ones(5, dtype)},
        "blocks": jnp.asarray(gaussian((2, 5, 6), dtype, 1)),
        "conv": {"kernel": jnp.asarray(gaussian((3, 3, 2, 4), dtype, 2))},
        "steps": jnp.zeros((), jnp.int32),
    }


WHERE = "kernel|blocks"
AXES = {"blocks": (1, 2), "conv": ((0, 1, 2), 3)}


def begun(params, method="standard", rank=3, where=WHERE, axes=AXES, **given):
    shapes = {"dense/kernel": (20, 7), "blocks": (2, 20, 5), "conv/kernel": (20, 18)}
    dtype = params["dense"]["kernel"].dtype
    seen = {path: gaussian(shape, dtype, 5) for path, shape in shapes.items()}
    given |= {"inputs": seen} if method == "eva" else {}
    return lora.init(KEY, params, rank, where, axes, method=method, **given)


def trained(adapters, size=0.05):
    """The adapters with everything that is trained moved, as if by an optimizer."""

    def move(x, is_trained):
        noise = gaussian(x.shape, x.dtype, x.size)
        return x + jnp.asarray(size * noise, x.dtype) if is_trained else x

    return jax.tree.map(move, adapters, lora.trainable(adapters))


def change(adapter):
    """scale (down up - start), in NumPy."""
    delta = double(adapter.down) @ double(adapter.up)
    if adapter.start is not None:
        delta = delta - double(adapter.start[0]) @ double(adapter.start[1])
    return adapter.scale * delta


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("given", KINDS, ids=["plain", "rslora", "dora"])
@pytest.mark.parametrize("method", METHODS)
def test_the_start_is_the_base(method, given, dtype):
    params = model(dtype)
    adapters = begun(params, method, **given)
    assert_within(lora.apply(params, adapters), params, 4)
    assert adapters["dense"]["bias"] is None
    assert adapters["blocks"].down.shape == (2, 5, 3)
    assert adapters["conv"]["kernel"].down.shape == (18, 3)
    scale = {"rslora": 3**0.5}.get("rslora" if "rslora" in given else "", 1.0)
    assert adapters["blocks"].scale == pytest.approx(scale)
    # And it is a place to learn from: some gradient is not zero.
    gradient = jax.grad(lambda a: jnp.sum(lora.apply(params, a)["dense"]["kernel"] ** 3))(adapters)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 0.1


@pytest.mark.parametrize("given", KINDS, ids=["plain", "rslora", "dora"])
@pytest.mark.parametrize("method", ["standard", "pissa"])
def test_apply_and_unmerge(method, given):
    params = model()
    kept = jax.tree.map(np.array, params)
    adapters = trained(begun(params, method, **given))
    merged = jax.jit(lora.apply)(params, adapters)
    assert_same_bits(params, kept)
    for name in ("blocks", "dense"):
        adapter = adapters[name] if name == "blocks" else adapters[name]["kernel"]
        W, result = (p[name] if name == "blocks" else p[name]["kernel"] for p in (params, merged))
        wanted = double(W) + change(adapter)
        if "dora" in given:
            norms = np.linalg.norm(wanted, axis=-2, keepdims=True)
            wanted = wanted / norms * double(adapter.magnitude)[..., None, :]
        assert_within(result, wanted, 100)
    wanted = double(params["conv"]["kernel"]).reshape(18, 4) + change(adapters["conv"]["kernel"])
    if "dora" not in given:
        assert_within(merged["conv"]["kernel"], wanted.reshape(3, 3, 2, 4), 100)
    assert float(jnp.abs(merged["blocks"] - params["blocks"]).max()) > 1e-2
    assert_within(lora.unmerge(merged, adapters), params, 100)


def test_initial_factors():
    W = with_values([5, 4, 3, 2, 1], 7, 5)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    # alpha / r = 4: it is the scaled product that is principal.
    pissa = lora.init(KEY, jnp.asarray(W), 2, method="pissa", alpha=8.0)
    assert_within(4 * pissa.down @ pissa.up, (U[:, :2] * s[:2]) @ Vh[:2], 100)
    assert_within(pissa.down.T @ pissa.down, pissa.up @ pissa.up.T, 100)
    milora = lora.init(KEY, jnp.asarray(W), 2, method="milora")
    assert_within(milora.down @ milora.up, (U[:, 3:] * s[3:]) @ Vh[3:], 100)
    X = with_values([9, 5, 3, 1, 0.5, 0.1], 30, 7, seed=3)
    eva = lora.init(KEY, jnp.asarray(W), 2, method="eva", inputs={".": X})
    V = np.linalg.svd(X)[2][:2].T
    assert_within(eva.down @ eva.down.T, V @ V.T, 100)
    assert_same_bits(eva.up, jnp.zeros((2, 5)))
    standard = lora.init(KEY, jnp.asarray(W), 2)
    assert 0.6 / 7**0.5 < float(jnp.abs(standard.down).max()) <= 1 / 7**0.5
    flipped = lora.init(KEY, jnp.asarray(W.T), 2, method="pissa", alpha=8.0, layout="out_in")
    assert flipped.down.shape == (7, 2)
    assert_within(lora.apply(jnp.asarray(W.T), flipped), W.T, 4)
    assert_within(4 * flipped.down @ flipped.up, (U[:, :2] * s[:2]) @ Vh[:2], 100)


def test_ranks_by_pattern_and_energy():
    params = {
        "a": jnp.asarray(with_values([3, 1, 0.1], 6, 5)),
        "b": jnp.asarray(gaussian((4, 8))),
        "c": jnp.asarray(gaussian((4, 4))),
    }
    adapters = lora.init(KEY, params, {"a": 0.95, "b": 7})
    assert (adapters["a"].rank, adapters["b"].rank, adapters["c"]) == (2, 4, None)
    assert lora.init(KEY, params, 0.8, "a")["a"].rank == 1
    X = with_values([3, 1, 0.1], 20, 6)
    eva = lora.init(KEY, params, 0.95, "a", method="eva", inputs={"a": X})
    assert eva["a"].rank == 2


@pytest.mark.x32
def test_half_precision_is_adapted_in_single():
    params = {"w": jnp.asarray(gaussian((6, 5)), jnp.bfloat16)}
    for method in ("standard", "pissa", "milora"):
        adapters = lora.init(KEY, params, 2, method=method)
        assert adapters["w"].down.dtype == jnp.float32
        assert_same_bits(lora.apply(params, adapters), params)


@pytest.mark.filterwarnings("ignore")
def test_constants_get_no_gradient_and_no_decay():
    W, x, y = gaussian((6, 4)), gaussian((20, 6), seed=1), gaussian((20, 4), seed=2)
    params = {"w": jnp.asarray(W)}
    adapters = lora.init(KEY, params, 2, method="pissa", dora=True)

    def loss(adapters):
        return jnp.mean((x @ lora.apply(params, adapters)["w"] - y) ** 2)

    gradient = jax.grad(loss)(adapters)["w"]
    assert_same_bits(
        (gradient.start, gradient.norm),
        jax.tree.map(jnp.zeros_like, (gradient.start, gradient.norm)),
    )
    mask = lora.trainable(adapters)["w"]
    assert (mask.down, mask.up, mask.magnitude, mask.start, mask.norm) == (
        True,
        True,
        True,
        (False, False),
        False,
    )
    optimizer = optax.masked(optax.adamw(1e-2, weight_decay=0.1), lora.trainable)

    @jax.jit
    def step(adapters, state):
        value, gradient = jax.value_and_grad(loss)(adapters)
        updates, state = optimizer.update(gradient, state, adapters)
        return optax.apply_updates(adapters, updates), state, value

    moved, values = adapters, []
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(adapters)
        for _ in range(20):
            moved, state, value = step(moved, state)
            values.append(float(value))
    assert values[-1] < 0.9 * values[0]
    assert_same_bits((moved["w"].start, moved["w"].norm), (adapters["w"].start, adapters["w"].norm))
    assert_within(lora.unmerge(lora.apply(params, moved), moved), params, 100)


@pytest.mark.parametrize("dtype", BOTH)
def test_extract(dtype):
    params = model(dtype)
    tuned = lora.apply(params, trained(begun(params, "standard", 2)))
    adapters = lora.extract(params, tuned, 2, WHERE, AXES)
    assert_within(lora.apply(params, adapters), tuned, 100)
    assert adapters["dense"]["kernel"].scale == 1
    # Energy: of values 8, 4, 2, 1, 0.5 the first two hold 0.938 of it, the first three 0.985.
    delta = with_values([8, 4, 2, 1, 0.5], 7, 5, dtype)
    tuned = params | {
        "dense": {"kernel": params["dense"]["kernel"] + delta, "bias": jnp.ones(5, dtype)}
    }
    found = lora.extract(params, tuned, 0.97, WHERE, AXES)
    assert found["blocks"] is None
    adapter = found["dense"]["kernel"]
    left = double(tuned["dense"]["kernel"]) - double(lora.apply(params, found)["dense"]["kernel"])
    assert np.sum(left**2) <= 0.03 * np.sum(double(delta) ** 2)
    assert adapter.rank in (3, 4)
    one = lora.extract(params, tuned, 1, WHERE, AXES)["dense"]["kernel"]
    U, s, Vh = np.linalg.svd(double(delta))
    assert_within(one.delta(), s[0] * np.outer(U[:, 0], Vh[0]), 1e4)
    flat = lora.extract(jnp.zeros((5, 7), dtype), jnp.asarray(delta.T), 5, layout="out_in")
    assert flat.down.shape == (7, 5)
    assert_within(lora.apply(jnp.zeros((5, 7), dtype), flat), delta.T, 100)


def test_to_plain_is_exact():
    params = model()
    for given in ({"rslora": True, "alpha": 3.0}, {"alpha": 5.0}, {"dora": True}):
        ranks = {"blocks": 2, "kernel": 3}
        adapters = trained(begun(params, "pissa", ranks, where=None, **given))
        plain = lora.to_plain(adapters)
        assert_within(lora.apply(params, plain), lora.apply(params, adapters), 50)
        assert plain["blocks"].start is None
        assert (plain["blocks"].rank, plain["dense"]["kernel"].rank) == (4, 6)
        if "alpha" in given:  # PEFT computes the scale from alpha and the rank
            for name, adapter in (("blocks", plain["blocks"]), ("dense", plain["dense"]["kernel"])):
                r = adapter.rank
                scale = adapter.alpha / (r**0.5 if adapter.rslora else r)
                assert scale == pytest.approx(
                    adapters[name].scale if name == "blocks" else adapters[name]["kernel"].scale
                )


def test_combine():
    params = model()
    first = trained(begun(params, "pissa", alpha=6.0))
    second = trained(begun(params, "standard", 2, where="kernel"))
    both = lora.combine([first, second], [2.0, -1.0])
    a, b = first["dense"]["kernel"], second["dense"]["kernel"]
    wanted = 2 * change(a) - change(b)
    assert_within(both["dense"]["kernel"].delta(), wanted, 100)
    assert_within(both["blocks"].delta(), 2 * change(first["blocks"]), 100)
    small = lora.combine([first, second], rank=1)["dense"]["kernel"]
    U, s, Vh = np.linalg.svd(change(a) + change(b))
    assert small.rank == 1
    assert_within(small.delta(), s[0] * np.outer(U[:, 0], Vh[0]), 1000)


@pytest.mark.parametrize("given", KINDS, ids=["plain", "rslora", "dora"])
def test_to_peft(given, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    params = {
        "encoder": {
            "0": {"kernel": jnp.asarray(gaussian((6, 5)))},
            "1": {"kernel": jnp.asarray(gaussian((5, 4)))},
        },
        "head": {"kernel": jnp.asarray(gaussian((4, 3)))},
    }
    adapters = trained(lora.init(KEY, params, {"0/": 1, "": 2}, method="pissa", **given))
    folder = lora.to_peft(adapters, tmp_path / "adapter", base_model="base")
    tensors = safetensors.load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]
    assert config["peft_type"] == "LORA"
    assert config["target_modules"] == ["encoder.0", "encoder.1", "head"]
    assert config["r"] == 4
    assert config["rank_pattern"] == {"encoder\\.0": 2}
    assert config["use_rslora"] == ("rslora" in given)
    assert config["use_dora"] == ("dora" in given)
    merged = lora.apply(params, adapters)
    for path, kernel, wanted in (
        ("encoder.0", params["encoder"]["0"], merged["encoder"]["0"]),
        ("head", params["head"], merged["head"]),
    ):
        # What PEFT does with the files, on the weight (outputs, inputs) of PyTorch.
        A, B = (tensors[f"base_model.model.{path}.lora_{x}.weight"] for x in "AB")
        pattern = path.replace(".", "\\.")
        r = config["rank_pattern"].get(pattern, config["r"])
        alpha = config["alpha_pattern"].get(pattern, config["lora_alpha"])
        assert A.shape[0] == B.shape[1] == r
        W = double(kernel["kernel"]).T + alpha / (r**0.5 if config["use_rslora"] else r) * (B @ A)
        if config["use_dora"]:
            m = tensors[f"base_model.model.{path}.lora_magnitude_vector"]
            W = W * (m / np.linalg.norm(W, axis=1))[:, None]
        assert_within(wanted["kernel"], W.T, 100)
    with pytest.raises(FileExistsError, match=r"lora.to_peft: `folder` must not exist"):
        lora.to_peft(adapters, folder)
    lora.to_peft(adapters, folder, force=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_it(tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    params = {str(i): {"kernel": jnp.asarray(gaussian((5, 5), np.float32, i))} for i in (0, 1)}
    for i, given in enumerate(KINDS):
        adapters = trained(lora.init(KEY, params, {"0/": 1, "": 2}, method="pissa", **given))
        folder = lora.to_peft(adapters, tmp_path / str(i))
        net = torch.nn.Sequential(*(torch.nn.Linear(5, 5, bias=False) for _ in range(2)))
        with torch.no_grad():
            for j, layer in enumerate(net):
                layer.weight.copy_(torch.tensor(np.array(params[str(j)]["kernel"]).T))
        x = gaussian((3, 5), np.float32)
        y = peft.PeftModel.from_pretrained(net, folder)(torch.tensor(x)).detach().numpy()
        W = lora.apply(params, adapters)
        assert_within(y, double(x) @ double(W["0"]["kernel"]) @ double(W["1"]["kernel"]), 500)


# ------------------------------------------------------------------------------------ frameworks

X, Y = gaussian((32, 6), np.float32), gaussian((32, 3), np.float32, 1)


def equinox():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(6, 3, 8, 1, key=KEY, dtype=jnp.float32)
    params, rest = eqx.partition(net, eqx.is_inexact_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, rest))(x), "weight", "out_in"


def linen():
    nn = pytest.importorskip("flax.linen")
    net = nn.Sequential([nn.Dense(8), jnp.tanh, nn.Dense(3)])
    return net.init(KEY, X), net.apply, "kernel", "in_out"


def nnx():
    nnx = pytest.importorskip("flax.nnx")
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(6, 8, rngs=rngs), jnp.tanh, nnx.Linear(8, 3, rngs=rngs))
    graph, params = nnx.split(net)
    return params, lambda params, x: nnx.merge(graph, params)(x), "kernel", "in_out"


def haiku():
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 3])(x)))
    return net.init(KEY, X), net.apply, "w$", "in_out"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("framework", [equinox, linen, nnx, haiku])
def test_in_frameworks(framework, tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, call, where, layout = framework()
        adapters = lora.init(KEY, params, 2, where, method="pissa", layout=layout)
        optimizer = optax.masked(optax.adamw(1e-2), lora.trainable)
        before = call(params, X)
        assert_within(call(lora.apply(params, adapters), X), before, 50)

        @jax.jit
        def step(adapters, state):
            def loss(adapters):
                return jnp.mean((call(lora.apply(params, adapters), X) - Y) ** 2)

            value, gradient = jax.value_and_grad(loss)(adapters)
            updates, state = optimizer.update(gradient, state, adapters)
            return optax.apply_updates(adapters, updates), state, value

        state, values = optimizer.init(adapters), []
        for _ in range(3):
            adapters, state, value = step(adapters, state)
            values.append(float(value))
        assert values[2] < values[1] < values[0]
        numpy = pytest.importorskip("safetensors.numpy")
        leaves, structure = jax.tree.flatten(adapters)
        numpy.save_file({str(i): np.array(x) for i, x in enumerate(leaves)}, tmp_path / "a")
        found = numpy.load_file(tmp_path / "a")
        again = structure.unflatten([jnp.asarray(found[str(i)]) for i in range(len(leaves))])
        assert_same_bits(call(lora.apply(params, again), X), call(lora.apply(params, adapters), X))


# ---------------------------------------------------------------------------------- bad input

P = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
A = lora.init(KEY, P, 2)
NAN = {"dense": {"kernel": jnp.full((4, 3), jnp.nan), "bias": jnp.ones(3)}}
DORA = lora.init(KEY, P, 1, dora=True)
BAD = {
    "nan": (
        lambda: lora.init(KEY, NAN, 2),
        "`params` must be finite, got NaN or Inf in leaf 'dense/kernel'",
    ),
    "extract nan": (lambda: lora.extract(P, NAN, 2), "`tuned` must be finite, .* 'dense/kernel'"),
    "other leaf": (
        lambda: lora.apply({"x": jnp.ones((4, 3))}, A),
        "of these parameters, got one for 'dense/kernel', which is no leaf; the paths are x",
    ),
    "other shape": (
        lambda: lora.apply({"dense": {"kernel": jnp.ones((5, 3)), "bias": 1.0}}, A),
        r"shape \(4, 3\) at 'dense/kernel', which is one of shape \(5, 3\)",
    ),
    "no adapters": (lambda: lora.apply(P, None), "must hold an adapter, got none"),
    "arrays": (lambda: lora.apply(P, P), "must hold adapters and None only, got"),
    "method": (
        lambda: lora.init(KEY, P, 2, method="x"),
        "lora.init: `method` must be one of 'standard'",
    ),
    "rank": (lambda: lora.init(KEY, P, 0), "1 <= rank <= .*, got 0"),
    "energy": (lambda: lora.init(KEY, P, 1.5), "0 < rank < 1, got 1.5"),
    "pattern": (lambda: lora.init(KEY, P, {"x": 2}), "`rank` must match a path, got 'x'"),
    "left out": (
        lambda: lora.init(KEY, P, {"x": 2}, "kernel"),
        "must have a pattern for 'dense/kernel'",
    ),
    "regex": (lambda: lora.init(KEY, P, {"(": 2}), "must map regular expressions to ranks"),
    "where": (lambda: lora.init(KEY, P, 2, "x"), "`where` must match a path, got 'x'"),
    "alpha": (lambda: lora.init(KEY, P, 2, alpha=0.0), "`alpha` must be a number > 0"),
    "key": (lambda: lora.init(0, P, 2), "lora.init: `key` must"),
    "eva": (lambda: lora.init(KEY, P, 2, method="eva"), "`inputs` must map path 'dense/kernel'"),
    "eva shape": (
        lambda: lora.init(KEY, P, 2, method="eva", inputs={"dense/kernel": jnp.ones((9, 3))}),
        r"shape \('N', 4\)",
    ),
    "eva samples": (
        lambda: lora.init(KEY, P, 2, method="eva", inputs={"dense/kernel": jnp.ones((1, 4))}),
        "must hold 2 samples",
    ),
    "traced": (
        lambda: jax.jit(lambda p: lora.init(KEY, p, 0.5))(P),
        "wants concrete arrays, got a traced one",
    ),
    "unchanged": (lambda: lora.extract(P, P, 2), "must differ from `base`"),
    "extract other": (
        lambda: lora.extract(P, {"x": jnp.ones((4, 3))}, 2),
        "must have the leaves of `base`",
    ),
    "extract shape": (
        lambda: lora.extract({"w": jnp.ones((4, 3))}, {"w": jnp.ones((4, 4))}, 2),
        "`tuned` must have shape",
    ),
    "extract energy": (
        lambda: lora.extract({"w": jnp.ones((4, 3))}, {"w": jnp.zeros((4, 3))}, 1 - 1e-15),
        "share of the energy must be at most",
    ),
    "combine": (
        lambda: lora.combine([A, lora.init(KEY, {"w": jnp.ones((4, 3))}, 1)]),
        "of the same parameters, got different trees",
    ),
    "combine shape": (
        lambda: lora.combine(
            [A, lora.init(KEY, {"dense": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}, 1)]
        ),
        "of the same parameters, got",
    ),
    "weights": (lambda: lora.combine([A, A], [1.0]), "`weights` must be 2 numbers, got 1"),
    "combine dora": (
        lambda: lora.combine([DORA]),
        "without DoRA's magnitudes, got some in 'dense/kernel'",
    ),
    "unmerge dora": (
        lambda: lora.unmerge(P, trained(DORA, 10.0)),
        "every column by less than its norm",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_bad_input_of_peft(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(
        ValueError, match=r"`adapters` must be of leaves with two axes, got 'blocks'"
    ):
        lora.to_peft(lora.init(KEY, model(), 1, WHERE, AXES), tmp_path / "x")
    with pytest.raises(ValueError, match="`rename` must give a different module name"):
        lora.to_peft({"a": A, "b": A}, tmp_path / "x", rename=lambda path: "same")
    mixed = {"a": A["dense"]["kernel"], "b": dataclasses.replace(A["dense"]["kernel"], rslora=True)}
    with pytest.raises(ValueError, match="must all use rslora and DoRA or not"):
        lora.to_peft(mixed, tmp_path / "x", rename=lambda path: path)
    assert not list(tmp_path.iterdir())
