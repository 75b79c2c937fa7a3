"""solution.py + model.pth: trained segmenters as two files for a machine that has the platform's packages and no more.

The script is put together from `solution_template.py` and the very functions it imports from common, so that it
cannot drift from what trained and judged the models.
"""

import ast
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from common.engine.checkpoint import plain
from common.errors import InputError
from common.files import atomic_write
from common.outputs.bundle import bundle
from common.post.thresholds import checked_thresholds

LIMIT_MB = 300
OVERHEAD = 200_000  # bytes of a zip with one record per tensor, and of the specs
PYTHON = (3, 9)
# Names whose weights and outputs were compared between segmentation-models-pytorch 0.3.4 and 0.6.
ARCHS = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3plus", "pan")
ENCODERS = ("resnet", "resnext", "se_resn", "vgg", "densenet", "dpn", "efficientnet-b", "mobilenet_v2", "inceptionv4",
            "xception", "timm-efficientnet-b", "timm-tf_efficientnet_lite", "timm-skresn", "mobileone_s0",
            "mobileone_s1", "mobileone_s2", "mobileone_s3")  # fmt: skip
TIMM = ("tu-resnet18", "tu-resnet34", "tu-resnet50", "tu-seresnet18", "tu-efficientnet_b", "tu-regnety_008",
        "tu-hrnet_w18", "tu-mobilenetv3_small_100", "tu-resnest14d", "tu-tf_efficientnetv2_b0",
        "tu-resnetv2_50", "tu-maxvit_rmlp_pico_rw_256")  # fmt: skip
TEMPLATE = "common.outputs.solution_template"
# Checked when the model was made; what falls away at inference.
STUBS = {
    "check_options": "def check_options(*_):\n    pass",
    "idle_weights": "def idle_weights(*_):\n    return frozenset()",
    "set_drop_path": "def set_drop_path(*_):\n    pass",
    "register_vit": "def register_vit(*_):\n    pass",
    "dpt_net": "def dpt_net(**_):\n    pass",
    "mask2former_net": "def mask2former_net(**_):\n    pass",
}
LEFT_OUT = {"Segmenter": ("train", "freeze_backbone", "part_of", "param_groups", "image_weights", "stems")}
# A loader may run the file without entering it among the modules, where dataclasses look it up.
FIRST = "sys.modules.setdefault(__name__, type(sys)(__name__))"
# Options of smp's classes that 0.3.4 lacks (dropout of a decoder), and a zip that Python 3.9 has not.
PATCH = """
ARCHS = {
    name: (kind, {key: value for key, value in own.items() if key in inspect.signature(kind).parameters})
    for name, (kind, own) in ARCHS.items()
}


def zip(*parts, strict=False):
    return builtins.zip(*parts)
"""


def solution_source() -> str:
    """The text of solution.py. RuntimeError where a definition cannot be copied, SyntaxError where 3.9 cannot read."""
    path = Path(importlib.util.find_spec(TEMPLATE).origin)
    imports = ("import builtins", "import inspect", "import sys")
    text = bundle(path, stubs=STUBS, left_out=LEFT_OUT, imports=imports, first=FIRST, patch=PATCH)
    ast.parse(text, feature_version=PYTHON)
    return text


def check_platform(spec: dict) -> None:
    """InputError for a model or an input that the platform's packages cannot make."""
    model, scaling = spec["model"], spec["scaling"]
    arch, encoder = model.get("arch", "unet"), model.get("encoder", "resnet34")
    if arch not in ARCHS:
        raise InputError(f"--solution: arch {arch} is not known to work with smp 0.3.4; use {', '.join(ARCHS)}")
    if not encoder.startswith(ENCODERS + TIMM) or (encoder.startswith("tu-") and not encoder.startswith(TIMM)):
        raise InputError(f"--solution: encoder {encoder} is not known to work with smp 0.3.4; resnet34 is")
    if model.get("head", "softmax") != "softmax" or model.get("spatial_attention", "none") != "none":
        raise InputError("--solution: an ordinal head and spatial attention are not copied into it; train without")
    if model.get("fusion", "early") != "early":
        raise InputError("--solution: --fusion late is not in it; train with one encoder")
    if scaling.get("texture"):
        raise InputError("--solution: texture bands need numba, which the platform lacks; train without --texture")


def same_settings(checkpoints: list[tuple[dict, dict]]) -> None:
    """InputError where checkpoints of one solution have other outputs or bands: their mean means nothing."""
    first = checkpoints[0][0]
    for spec, _ in checkpoints[1:]:
        for key in ("outputs", "bands", "label_map"):
            if spec[key] != first[key]:
                raise InputError(f"--solution: {key} differ, {first[key]} and {spec[key]}; take runs of one kind")


def raw_values(spec: dict) -> list[int]:
    """The raw label value of every class of a spec, in the order of its outputs; InputError where one has none."""
    value_of = {int(k): int(value) for value, k in spec["label_map"].items()}
    missing = [name for k, name in enumerate(spec["outputs"]) if k not in value_of]
    if missing:
        raise InputError(f"--solution: the label map has no value for {', '.join(missing)}; train on the task's labels")
    return [value_of[k] for k in range(len(spec["outputs"]))]


def stored_bytes(states: list[dict], half: bool) -> int:
    return sum(sum(t.numel() * shrunk(t, half).itemsize for t in state.values()) for state in states)


def shrunk(tensor: torch.Tensor, half: bool) -> torch.dtype:
    """The dtype a tensor is stored in: kernels alone as float16, whose range the batch statistics may leave."""
    return torch.float16 if half and tensor.is_floating_point() and tensor.ndim > 1 else tensor.dtype


def fit_states(states: list[dict], limit: int) -> tuple[list[dict], bool]:
    """(states as they are stored, whether in float16): float32 where it keeps the limit, InputError where neither."""
    half = stored_bytes(states, False) + OVERHEAD > limit
    needed = stored_bytes(states, half) + OVERHEAD
    if needed > limit:
        fit = max(0, int((limit - OVERHEAD) // max(stored_bytes([state], True) for state in states)))
        raise InputError(
            f"--solution: {len(states)} folds take {needed / 1e6:.0f} MB even as float16, {limit / 1e6:.0f} are"
            f" allowed: {fit} would fit; name fewer with --fold or take a smaller encoder"
        )
    return [{name: t.detach().cpu().to(shrunk(t, half)) for name, t in state.items()} for state in states], half


def write_solution(
    folder: str | Path,
    checkpoints: list[tuple[dict, dict]],
    *,
    thresholds=None,
    morphology: dict | None = None,
    views: list[str] = ("identity",),
    values: Sequence[int] | None = None,
    limit_mb: float = LIMIT_MB,
) -> dict:
    """Write solution.py and model.pth to `folder`; returns {"solution", "model", "bytes", "half", "folds"}.

    checkpoints: (spec, state dict) of every fold; the mean of their probabilities counts. thresholds: K numbers as
    post/thresholds.py has them (None: plain argmax); morphology: options of `finish_mask` (None: none); views: of
    engine/tta.py; values: raw value of every class (None: those of the label map). float16 where float32 passes
    limit_mb (of 10^6 bytes). InputError where that is too much still, or the platform cannot run such a model.
    """
    if not checkpoints:
        raise InputError("--solution: no checkpoint is given; train a fold first")
    for spec, _ in checkpoints:
        check_platform(spec)
    same_settings(checkpoints)
    first, folder = checkpoints[0][0], Path(folder)
    classes = len(first["outputs"])
    states, half = fit_states([state for _, state in checkpoints], int(limit_mb * 1e6))
    content = {
        "format": "landfold-solution-1",
        "folds": [{"spec": plain(spec), "state_dict": state}
                  for (spec, _), state in zip(checkpoints, states, strict=True)],
        "thresholds": checked_thresholds([1.0] * classes if thresholds is None else thresholds, classes),
        "morphology": plain(morphology or {}),
        "views": list(views),
        "values": raw_values(first) if values is None else [int(value) for value in values],
    }  # fmt: skip
    model = atomic_write(folder / "model.pth", lambda path: torch.save(content, path))
    script = atomic_write(folder / "solution.py", solution_source())
    return {"solution": script, "model": model, "bytes": model.stat().st_size, "half": half, "folds": len(states)}
