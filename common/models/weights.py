"""Pretrained weights of a backbone, with or without a network, loaded safely and completely."""

import os
import re
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import hf_hub_download

from common.errors import InputError
from common.models.backbone import Backbone
from common.torch_files import read_tensors, read_torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")  # in this order where one folder holds several
SEARCH_DEPTH = 6  # folders below a Kaggle mount: owner, model, framework, variation, version
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "module")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.", "encoder.", "trunk.")
SURPLUS = (  # of pretraining and classification, not of an encoder
    "head.", "head_dist.", "fc.", "classifier.", "lm_head.", "dino_head.", "ibot_head.", "mask_token", "projectors.",
    "local_cls_norm.",
)  # fmt: skip


def load_backbone(backbone: Backbone, weights, *, name: str | None = None, search=()) -> str:
    """Fill `backbone` and say where the weights came from, in words for the log.

    weights  "none": random, nothing is done; "auto": a file for `name` (default: the backbone's own timm name) under
             the folders `search` in their order, else timm's download; anything else: a file, or a folder with one.
    Every encoder key must be filled; surplus keys must be on the list SURPLUS. Raises InputError.
    """
    name = name or backbone.name
    if str(weights) == "none":
        return "random weights"
    if str(weights) == "auto":
        path = find_weights(name, search)
        state, source = (read_weights(path), str(path)) if path else download(name, search)
    else:
        path = file_of(Path(weights), name)
        state, source = read_weights(path), str(path)
    fill(backbone, state, source)
    return source


def find_weights(name: str, search) -> Path | None:
    """First weight file for the timm model `name` in the folders of `search`, or None.

    A file counts when its own name or that of a folder above it (below the searched one) is the model's full name,
    with or without its tag, in any punctuation, `timm-` before it or not: `vit_small_patch14_dinov2.lvd142m.pth`,
    `timm-vit-small-patch14-dinov2-lvd142m/pytorch/default/1/model.safetensors`.
    """
    wanted = {_plain(n) for n in (name, name.split(".")[0], _full_name(name))}
    for folder in search:
        named = [
            path for path in _weight_files(Path(folder))
            if wanted & {_plain(part).removeprefix("timm_") for part in _names(path, Path(folder))}
        ]  # fmt: skip
        if named:
            exact = [p for p in named if _plain(_full_name(name)) in map(_plain, _names(p, Path(folder)))]
            return (exact or named)[0]
    return None


def read_weights(path: Path) -> dict:
    """Tensors by name from a .safetensors, .pth, .pt or .bin file; nothing in it is ever executed."""
    path, remedy = Path(path), "fetch it again, best as .safetensors"
    if not path.is_file():
        raise InputError(f"--weights {path}: no such file")
    read = read_tensors if path.suffix == ".safetensors" else read_torch
    state = read(path, remedy=remedy, where=f"--weights {path}")
    if read is read_tensors:
        return state
    while isinstance(state, dict) and any(isinstance(state.get(key), dict) for key in CONTAINERS):
        state = next(state[key] for key in CONTAINERS if isinstance(state.get(key), dict))
    state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, dict) else {}
    if not state:
        raise InputError(f"--weights {path}: holds no tensors by name; a state dict is needed")
    return state


def download(name: str, search=()) -> tuple[dict, str]:
    """State dict from timm's hub and its address; without a network an InputError says what to fetch by hand."""
    cfg = timm.models.get_pretrained_cfg(name)
    hub, url = getattr(cfg, "hf_hub_id", None), getattr(cfg, "url", None)
    if not hub and not url:
        raise InputError(
            f"--weights auto: timm has no pretrained weights for {name}; say --weights none or give a PATH"
        )
    address = f"https://huggingface.co/{hub}/resolve/main/model.safetensors" if hub else url
    try:
        if hub and not reachable(
            address
        ):  # the hub's library would try for half a minute; what it holds already is fine
            return read_weights(hf_hub_download(hub, "model.safetensors", local_files_only=True)), address
        if hub:
            return timm.models.load_state_dict_from_hf(hub, weights_only=True), address
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True), address
    except InputError:
        raise
    except Exception as error:  # each hub library has its own family of network errors
        raise not_fetched(name, _full_name(name), address, search, error) from error


def not_fetched(name: str, file: str, address: str, search, error: Exception) -> InputError:
    """What to say where weights are found nowhere: what to fetch, and the file (without suffix) to put it at."""
    folders = ", ".join(str(folder) for folder in search) or "no folder"
    target = Path(next(iter(search), "weights")) / f"{file}{Path(address).suffix}"
    return InputError(
        f"--weights auto: nothing for {name} in {folders} and no download ({type(error).__name__}); "
        f"fetch {address} and put it at {target}, or say --weights none"
    )


def reachable(address: str) -> bool:
    """Whether the host answers within three seconds; behind a proxy it is taken for granted."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT")):
        return True
    try:
        socket.create_connection((urlsplit(address).hostname, 443), timeout=3).close()
        return True
    except OSError:
        return False


def fill(backbone: Backbone, state: dict, source: str):
    """Load `state` into the backbone: prefixes taken off, converted and resized by timm, every encoder key filled."""
    net = backbone.net
    state = convert(net, strip_prefixes(state, set(net.state_dict())), source)
    own = net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(f"--weights {source}: lacks {some(missing)} of {backbone.name}; is it the right model?")
    allowed = SURPLUS + tuple(_classifiers(net))
    surplus = [k for k in state if k not in own and k not in backbone.whole_names and not k.startswith(allowed)]
    if surplus:
        raise InputError(
            f"--weights {source}: {some(surplus)} not of {backbone.name}; a checkpoint of our own goes to --init"
        )
    wrong = [f"{k} {tuple(state[k].shape)} for {tuple(v.shape)}" for k, v in own.items()
             if k in state and state[k].shape != v.shape]  # fmt: skip
    if wrong:
        raise InputError(f"--weights {source}: other shapes than {backbone.name}: {some(wrong)}")
    net.load_state_dict({key: state.get(key, value) for key, value in own.items()})


def strip_prefixes(state: dict, own: set[str]) -> dict:
    """Take wrappers' prefixes off the names, unless the model's own names begin so."""
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if any(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
                state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def convert(net, state: dict, source: str) -> dict:
    """timm's own conversion for this kind of model: names of the authors' files, position embeddings resized."""
    adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return state
    try:
        return adapt(state, net)
    except (KeyError, RuntimeError, AttributeError, IndexError, AssertionError) as error:
        raise InputError(
            f"--weights {source}: timm cannot convert it ({type(error).__name__}: {error}); is it the right model?"
        ) from error


def _classifiers(net) -> list[str]:
    names = (getattr(net, "pretrained_cfg", None) or {}).get("classifier") or ()
    return [f"{name}." for name in ([names] if isinstance(names, str) else names)]


def _full_name(name: str) -> str:
    """`vit_x` -> `vit_x.tag`, the tag that timm takes by default; a tag that is not timm's stays."""
    try:
        cfg = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # smp's `resnet34.imagenet`
        return name
    return f"{cfg.architecture}.{cfg.tag}" if cfg is not None and cfg.tag else name


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _names(path: Path, folder: Path) -> list[str]:
    parts = path.relative_to(folder).parts
    return [path.name.removesuffix(path.suffix), *parts[:-1]]


def _weight_files(folder: Path) -> list[Path]:
    found = []
    for root, folders, files in os.walk(folder):
        folders.sort()
        if len(Path(root).relative_to(folder).parts) >= SEARCH_DEPTH:
            folders.clear()
        found += [Path(root) / file for file in files if file.endswith(SUFFIXES)]
    return sorted(found, key=lambda p: (p.parent, SUFFIXES.index(p.suffix), p.name))


def file_of(path: Path, name: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"--weights {path}: no such file or folder; give none, auto or a path")
    files = _weight_files(path)
    found = find_weights(name, [path]) or (files[0] if len(files) == 1 else None)
    if found is None:
        held = some([file.name for file in files]) if files else f"no {' '.join(SUFFIXES)} file"
        raise InputError(f"--weights {path}: holds {held}; none is named {name}, give the file itself")
    return found


def some(names: list) -> str:
    return ", ".join(map(str, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
