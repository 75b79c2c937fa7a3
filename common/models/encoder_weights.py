"""Pretrained weights into the encoder of a segmenter: files of smp, torchvision and timm, the stem by band name."""

import re
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import hf_hub_download
from torch import nn

from common.errors import InputError
from common.models import weights as files
from common.models.foundation import PREFIX
from common.models.geo_vit import GEO, SOURCES, geo_state, kernels_by_name
from common.models.late_fusion import LateEncoder
from common.models.sam3 import SAM3, SAM3_SOURCE, sam3_state
from common.models.segmenter import Segmenter, first_convolution

PHOTO_BANDS = ("red", "green", "blue")  # the channels of a stem trained on photos, in this order
CLASSIFIERS = (*files.SURPLUS, "last_linear.", "_fc.")  # as smp's encoders name them


def load_encoder(model: Segmenter, weights, *, bands, search=()) -> str:
    """Fill the encoder of `model`, and say in words for the log where the weights came from and what the stem got.

    weights  "none": random, nothing is done; "auto": a file named as the encoder (of smp, of timm for `tu-…` and
             `vit-…`) under the folders `search` in their order, else the download of smp or timm (none of Prithvi,
             SatMAE and SAM 3); else a file or a folder with one.
    bands    names of the model's channels. A stem of three bands is adapted by them: the kernels of red, green and
             blue go to the bands of that name, wherever they stand, the mean of the three to every other; likewise the
             kernels of Prithvi and SatMAE by the names of theirs. Of a late fusion both encoders are filled so.
    Every encoder key must be filled; surplus keys must be of a classifier. Raises InputError.
    """
    if len(bands) != model.channels:
        raise InputError(f"bands {', '.join(bands)}: {len(bands)} names for a model of {model.channels} channels")
    if str(weights) == "none":
        return "random weights"
    name = model.encoder_name.removeprefix("tu-").removeprefix(PREFIX)
    state, source = _find(model.encoder_name, name, weights, search)
    return f"{source}; {fill_encoder(model, state, source, bands)}"


def _find(encoder: str, name: str, weights, search) -> tuple[dict, str]:
    if str(weights) != "auto":
        path = files.file_of(Path(weights), name)
        return files.read_weights(path), str(path)
    timms = encoder.startswith(("tu-", PREFIX))
    settings = {} if timms else smp.encoders.encoders[encoder]["pretrained_settings"]
    kind = "imagenet" if "imagenet" in settings else next(iter(settings), "")
    path = (files.find_weights(f"{name}.{kind}", search) if kind else None) or files.find_weights(name, search)
    if path:
        return files.read_weights(path), str(path)
    if name in GEO or name in SAM3:
        folder = next(iter(search), "weights")
        raise InputError(
            f"--weights auto: no file for {name} in {', '.join(map(str, search)) or 'no folder'}, and no download; "
            f"take it from {SOURCES.get(name, SAM3_SOURCE)}, put it at {Path(folder) / name}.pt, or say --weights none"
        )
    return files.download(name, search) if timms else download(name, kind, settings, search)


def download(name: str, kind: str, settings: dict, search) -> tuple[dict, str]:
    """State dict of an encoder from smp's hub and its address; without a network an InputError says what to fetch."""
    if not settings:
        raise InputError(f"--weights auto: smp has no weights for {name}; say --weights none or give a PATH")
    hub, url = settings[kind].get("repo_id"), settings[kind].get("url")  # older versions of smp give addresses
    revision = settings[kind].get("revision", "main")
    address = f"https://huggingface.co/{hub}/resolve/{revision}/model.safetensors" if hub else url
    try:
        if hub:
            offline = not files.reachable(address)
            path = hf_hub_download(hub, "model.safetensors", revision=revision, local_files_only=offline)
            return files.read_weights(Path(path)), address
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True), address
    except InputError:
        raise
    except Exception as error:  # each hub library has its own family of network errors
        raise files.not_fetched(name, f"{name}.{kind}", address, search, error) from error


def fill_encoder(model: Segmenter, state: dict, source: str, bands) -> str:
    """Load `state` (names of smp, torchvision, timm or the authors) into the encoder; what the stem got, in words."""
    encoder = model.net.encoder
    if not isinstance(encoder, LateEncoder):
        return fill_part(encoder, model.encoder_name, state, source, bands)
    others = [bands[index] for index in encoder.others]
    photo = fill_part(encoder.photo, model.encoder_name, state, source, PHOTO_BANDS)
    rest = fill_part(encoder.rest, model.encoder_name, state, source, others)
    return f"first encoder: {photo}; second: {rest}"


def fill_part(encoder: nn.Module, name: str, state: dict, source: str, bands) -> str:
    """Load `state` into one encoder called `name` for the bands; InputError before anything of it has changed."""
    encoder = encoder.model if name.startswith(PREFIX) else encoder  # what stands after a ViT is new
    own, whole = encoder.state_dict(), whole_model(name)
    reference = set(whole.state_dict()) if whole is not None else set(own)
    said = "stem as in the file"
    if name.removeprefix(PREFIX) in GEO:
        state, said = geo_state(encoder, files.strip_prefixes(state, reference), bands, source)
    elif name.removeprefix(PREFIX) in SAM3:
        state = sam3_state(state)
    else:
        state = files.strip_prefixes(state, reference)
    if whole is not None:
        state = files.convert(whole, state, source)
    by_plain = {plain(key): value for key, value in state.items()}
    found = {key: state.get(key, by_plain[plain(key)]) for key in own if plain(key) in by_plain}
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    if missing:
        raise InputError(f"--weights {source}: lacks {files.some(missing)} of {name}; is it the right model?")
    known = {plain(key) for key in (*own, *reference)}
    surplus = [key for key in state if plain(key) not in known and not key.startswith(CLASSIFIERS)]
    if surplus:
        raise InputError(
            f"--weights {source}: {files.some(surplus)} not of {name}; a checkpoint of our own goes to --init"
        )
    if name.removeprefix(PREFIX) not in GEO:
        for key in first_convolution(encoder, len(bands)):
            found[key], said = adapt_stem(found[key], bands, source)
    wrong = [f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}" for k, v in found.items() if v.shape != own[k].shape]
    if wrong:
        raise InputError(f"--weights {source}: other shapes than {name}: {files.some(wrong)}")
    nn.Module.load_state_dict(encoder, {**own, **found})  # smp's encoders rename keys in their own method
    return said


def adapt_stem(weight: torch.Tensor, bands, source: str) -> tuple[torch.Tensor, str]:
    """Kernels (N,3,h,w) of red, green, blue -> (N,C,h,w) for the bands named, unscaled; and what went where.

    A stem of C other than 3 channels is taken as it is where C is the number of bands, as a file has no names.
    """
    found = weight.shape[1]
    if found != len(PHOTO_BANDS):
        if found != len(bands):
            raise InputError(
                f"--weights {source}: its stem has {found} bands, the model {len(bands)}; only three (red, green, "
                "blue) can be adapted; a checkpoint of our own goes to --init"
            )
        return weight, f"stem as in the file, its {found} bands in their order"
    adapted, named, others = kernels_by_name(weight, PHOTO_BANDS, bands)
    parts = [f"{', '.join(named)} by name"] if named else []
    parts += [f"mean of red, green and blue to {', '.join(others)}"] if others else []
    return adapted, f"stem: {'; '.join(parts)}"


def whole_model(encoder: str) -> nn.Module | None:
    """timm's model with its classifier, without memory for weights; None for an encoder that is not timm's."""
    name = encoder.removeprefix("tu-").removeprefix(PREFIX)
    if name == encoder or name in GEO or name in SAM3:
        return None
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def plain(key: str) -> str:
    """One name for a tensor: timm's feature extractors say `stages_0` for `stages.0`, old DenseNets `norm.1`."""
    return re.sub(r"[._]", "", re.sub(r"^(model\.)+", "", key))
