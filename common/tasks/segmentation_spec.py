"""The spec of a segmentation model: everything that inference needs, as plain types inside a checkpoint."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from common.datasets.inputs import channel_names, channel_statistics, valid_pixels
from common.datasets.tiles import Source, TileStore
from common.errors import InputError

TURNS = ["identity", "hflip", "vflip", "rot90", "rot180", "rot270"]
VIEWS = [*TURNS, "scale0.75", "scale1.25"]
MOST_TILES = 400  # that statistics are taken from: evenly spaced where there are more


def few(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_TILES)).astype(int))]


def texture_spec(rows: pd.DataFrame, settings: dict, bands: tuple, source: Source) -> dict | None:
    """The texture bands with their grey levels between the 1st and 99th percentile of the training rows' band."""
    if not settings["texture"]:
        return None
    if settings["texture_band"] not in bands:
        raise InputError(f"--texture-band {settings['texture_band']}: is none of the model's bands "
                         f"({', '.join(bands)}); name one of them")  # fmt: skip
    place, values = list(bands).index(settings["texture_band"]), []
    for path in few(rows)["path"]:
        tile = source.read_tile(path, bands)
        values.append(tile[place][valid_pixels(tile)][::17])
    low, high = np.percentile(np.concatenate(values), (1, 99))
    return {
        "band": settings["texture_band"],
        "properties": list(settings["texture"]),
        "levels": settings["texture_levels"],
        "window": settings["texture_window"],
        "low": float(low),
        "high": float(high),
    }


def input_statistics(rows: pd.DataFrame, spec: dict, settings: dict, source: Source) -> tuple[list, list]:
    """(mean, std) of the model's channels over the training rows' pixels with data."""
    cache = settings["cache"] if settings["cache_images"] else None
    rows = few(rows)
    store = TileStore(rows.drop(columns="label"), spec, source, cache=cache, keep=False)
    return channel_statistics(store.whole(index)[:2] for index in range(len(rows)))


def make_spec(rows, settings, *, name: str, bands, outputs_of: Callable, label_maps: Callable, source, own) -> dict:
    """Everything inference needs, as plain types; statistics come from the training rows given.

    own: what the competition adds to it; with "colour" photometric augmentation touches red, green and blue alone, with
    "prior" a new model begins with the shares of the classes.
    """
    outputs, bands = list(outputs_of(rows)), list(settings.get("bands") or bands)
    scaling = {"scale": settings["scale"], "indices": list(settings["indices"])}
    scaling["texture"] = texture_spec(rows, settings, bands, source)
    scaling["relative"] = list(settings["relative"])
    if unknown := sorted(set(settings["relative"]) - set(bands)):
        raise InputError(
            f"--relative {unknown[0]}: is none of the model's bands ({', '.join(bands)}); name one of them"
        )
    inputs = channel_names(bands, scaling["indices"], scaling["texture"])
    spec = {
        "task": name,
        "family": "segmentation",
        "outputs": outputs,
        "bands": bands,
        "inputs": inputs,
        "scaling": scaling,
        "label_map": {str(raw): index for raw, index in label_maps(rows, settings).items()},
        "views": VIEWS,
        "model": {
            "arch": settings["arch"],
            "encoder": settings["encoder"],
            "channels": len(inputs),
            "classes": len(outputs),
            "attention": settings["attention"],
            "decoder": list(settings["decoder"]),
            "stem": settings["stem"],
            "dropout": settings["dropout"],
            "drop_path": settings["drop_path"],
            "spatial_attention": settings["spatial_attention"],
            "head": settings.get("head", "softmax"),
            **({"fusion": "late", "rgb": rgb_of(inputs)} if settings["fusion"] == "late" else {}),
            **({"bands": inputs} if settings["encoder"].startswith("vit-") else {}),
        },
        **own,
    }
    if own.get("colour"):
        spec["colour"] = rgb_of(inputs) if {"red", "green", "blue"} <= set(inputs) else None
    if own.get("prior"):
        spec["prior"] = rows[outputs].mean().tolist()
    spec["mean"], spec["std"] = input_statistics(rows, spec, settings, source)
    return spec


def rgb_of(inputs: list[str]) -> list[int]:
    """Places of red, green and blue among the model's channels. InputError where one is not there."""
    lacking = [name for name in ("red", "green", "blue") if name not in inputs]
    if lacking:
        raise InputError(f"the model's bands ({', '.join(inputs)}) lack {', '.join(lacking)}; --fusion late and colour "
                         "augmentation need red, green and blue")  # fmt: skip
    return [inputs.index(name) for name in ("red", "green", "blue")]
