"""Adapters written in the layout of Hugging Face PEFT."""

import collections
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import _checks
from .adapter import Adapter, held
from .change import to_plain

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _module(path: str) -> str:
    """Return the module of a leaf: "encoder/dense/kernel" is "encoder.dense"."""
    return ".".join(path.split("/")[:-1])


def _number(x: float) -> int | float:
    rounded = round(x)
    return rounded if abs(x - rounded) < 1e-9 * max(1.0, abs(x)) else x


def _config(modules: dict[str, Adapter], base_model: str | None) -> dict[str, Any]:
    """Return PEFT's LoraConfig: what most modules have, and patterns for the others."""
    ranks = {module: adapter.rank for module, adapter in modules.items()}
    alphas = {module: _number(adapter.alpha) for module, adapter in modules.items()}
    first = next(iter(modules.values()))
    r = collections.Counter(ranks.values()).most_common(1)[0][0]
    alpha = collections.Counter(alphas.values()).most_common(1)[0][0]

    def others(values, common):  # patterns are regular expressions: a dot is to be a dot
        return {re.escape(module): x for module, x in values.items() if x != common}

    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": others(ranks, r),
        "alpha_pattern": others(alphas, alpha),
        "target_modules": sorted(modules),
        "use_rslora": first.rslora,
        "use_dora": first.magnitude is not None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def to_peft(
    adapters: Any,
    folder: str | os.PathLike,
    *,
    rename: Callable[[str], str] | None = None,
    base_model: str | None = None,
    force: bool = False,
) -> Path:
    """Write adapters as Hugging Face PEFT reads them, for the same model in PyTorch.

        base_model.model.<module>.lora_A.weight   down^T, (r, inputs)
        base_model.model.<module>.lora_B.weight   up^T, (outputs, r)
        base_model.model.<module>.lora_magnitude_vector   (outputs,), with DoRA

    in adapter_model.safetensors, and adapter_config.json with the most frequent rank and alpha and
    patterns for the other modules. Adapters with a start are converted by `to_plain`. The folder
    appears whole or not at all.

    Args:
        adapters: of leaves with two axes.
        folder: where to write; made.
        rename: from the path of a leaf to the name of PyTorch's module; by default the path without
            its last part, "/" being ".": "encoder/dense/kernel" is "encoder.dense".
        base_model: name of the base model, for the configuration.
        force: write into a folder that exists.

    Returns:
        The folder.

    Raises:
        ImportError: safetensors is not installed.
        FileExistsError: the folder exists, without ``force``.
        TypeError: ``adapters`` holds anything else.
        ValueError: a leaf of more axes, a name that is empty or occurs twice, adapters of which
            some only use DoRA or rslora.

    Example:
        >>> import jax, jax.numpy as jnp, jaxsvd, tempfile
        >>> params = {"dense": {"kernel": jnp.ones((4, 3))}}
        >>> adapters = jaxsvd.lora.init(jax.random.key(0), params, 2, alpha=4)
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
        ...     jaxsvd.lora.to_peft(adapters, f"{folder}/adapter")

    References:
        Hugging Face PEFT, "PEFT checkpoint format" (developer guide).
    """
    name = "lora.to_peft"
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(
            f'{name} needs safetensors; run pip install "jaxsvd[io]" to install it'
        ) from error
    rename = _module if rename is None else _checks.function(name, "rename", rename)
    modules: dict[str, Adapter] = {}
    for path, adapter in held(name, to_plain(adapters)).items():
        if adapter.down.ndim != 2 or len(adapter.rows + adapter.columns) != 2:
            raise ValueError(
                f"{name}: `adapters` must be of leaves with two axes, got {path!r} with factors "
                f"{adapter.down.shape} and {adapter.up.shape}"
            )
        module = rename(path)
        if not isinstance(module, str) or not module or module in modules:
            raise ValueError(
                f"{name}: `rename` must give a different module name for each leaf, got {module!r} "
                f"for {path!r}"
            )
        modules[module] = adapter
    if len({(a.rslora, a.magnitude is None) for a in modules.values()}) > 1:
        raise ValueError(f"{name}: `adapters` must all use rslora and DoRA or not, got both")
    tensors = {}
    for module, adapter in modules.items():
        prefix = f"base_model.model.{module}.lora_"
        tensors[prefix + "A.weight"] = np.ascontiguousarray(np.asarray(adapter.down).T)
        tensors[prefix + "B.weight"] = np.ascontiguousarray(np.asarray(adapter.up).T)
        if adapter.magnitude is not None:
            tensors[prefix + "magnitude_vector"] = np.asarray(adapter.magnitude)
    folder = Path(folder)
    if folder.exists() and not _checks.flag(name, "force", force):
        raise FileExistsError(f"{name}: `folder` must not exist without force=True, got {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        text = json.dumps(_config(modules, base_model), indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text + "\n")
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        if folder.exists():
            for file in (WEIGHTS, CONFIG):
                os.replace(temporary / file, folder / file)
        else:
            temporary.chmod(0o755)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
