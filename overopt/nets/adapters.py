"""LoRA adapters in the layout of PEFT: what they belong to, and how they change its weights.

An adapter is a folder with adapter_config.json and adapter_model.safetensors. Of a module with weights W
(out, in) it holds A (r, in) and B (out, r), which make W + s·B·A with s = α/r, or α/√r with
``use_rslora`` (Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732); other weights in
it take the place of those of the base. It is merged when the base is loaded; nothing is written.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overopt.base import files
from overopt.base.errors import CheckpointError, DataError
from overopt.nets.headers import Weight, read_headers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])(\.default)?\.weight")
_OTHERWISE = (
    "merge it once with  python -c \"from peft import AutoPeftModelForCausalLM as M; s = 'ADAPTER';"
    " M.from_pretrained(s).merge_and_unload().save_pretrained(s + '-merged')\"  and give that"
)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def read_adapter(path: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA adapter.

    Raises
    ------
    CheckpointError
        It is of another type, or has something that is not merged here.
    """
    try:
        config = files.load_object(path / CONFIG, ("base_model_name_or_path",))
    except DataError as e:
        raise CheckpointError(f"{path / CONFIG} cannot be read: {e}") from e
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path} is an adapter of type {config.get('peft_type')!r}; only LORA is merged here:"
            f" {_OTHERWISE}"
        )
    for name in ("use_dora", "layer_replication", "lora_bias", "trainable_token_indices"):
        if config.get(name):
            raise CheckpointError(
                f"{path / CONFIG}: {name} = {config[name]!r} is not merged here: {_OTHERWISE}"
            )
    if not (path / WEIGHTS).is_file():
        raise CheckpointError(f"{path} has no {WEIGHTS}: save the adapter as safetensors")
    return config


def replaced(path: Path) -> set[str]:
    """Names in the base of the weights that the adapter holds whole, such as a head."""
    split = (_split(path, name) for name in read_headers([path / WEIGHTS]))
    return {module for module, which in split if not which}


def merged_headers(path: Path, base: Mapping[str, Weight]) -> dict[str, Weight]:
    """Headers of the base with what the adapter replaces.

    Raises
    ------
    CheckpointError
        The adapter changes a weight that the base has not, or one of another shape.
    """
    found, factors = dict(base), dict[str, dict[str, Weight]]()
    for name, weight in read_headers([path / WEIGHTS]).items():
        module, which = _split(path, name)
        if which:
            factors.setdefault(module, {})[which] = weight
        else:
            found[module] = weight
    for module, both in factors.items():
        target = base.get(f"{module}.weight")
        if target is None or both.keys() != {"A", "B"}:
            raise CheckpointError(
                f"{path / WEIGHTS} changes {module}, which the base has not: base_model_name_or_path in"
                f" {CONFIG} must name the model that it was trained on"
            )
        shape = (both["B"].shape[0], both["A"].shape[1])
        if both["A"].shape[0] != both["B"].shape[1] or target.shape not in (shape, shape[::-1]):
            raise CheckpointError(
                f"{path / WEIGHTS}: {module} is {shape[0]} x {shape[1]}, that of the base"
                f" {' x '.join(map(str, target.shape))}: they do not belong together"
            )
    return found


def merge(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Weights of the base by name, tensors that are changed in place, with the adapter merged in.

    What the adapter adds beside them, such as a head, is put in.
    """
    config = read_adapter(path)
    factors: dict[str, dict[str, Any]] = {}
    for name, tensor in files.load_tensors(path / WEIGHTS).items():
        module, which = _split(path, name)
        if which:
            factors.setdefault(module, {})[which] = tensor.float()
        elif module in state:
            state[module].data.copy_(tensor)
        else:
            state[module] = tensor
    for module, both in factors.items():
        delta = scale(config, module, len(both["A"])) * (both["B"] @ both["A"])
        weight = state[f"{module}.weight"]
        is_transposed = config.get("fan_in_fan_out") or weight.shape != delta.shape
        weight.data.copy_(weight.data.float() + (delta.T if is_transposed else delta))
    return state


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor s of a module's B·A."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = float(value)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _split(path: Path, name: str) -> tuple[str, str]:
    """Module and factor (A or B) of a tensor's name; or the name in the base and nothing."""
    own = name.removeprefix(_PREFIX)
    found = _FACTOR.fullmatch(own)
    if found:
        return found["module"], found["which"]
    if ".lora_" in own:
        raise CheckpointError(f"{path / WEIGHTS}: {name} is not merged here: {_OTHERWISE}")
    return own.replace(".modules_to_save.default", ""), ""
