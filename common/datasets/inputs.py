"""A tile's raw bands -> what the model sees: scaling, spectral indices, texture bands, standardisation.

Pure numpy: the same source runs in training, in inference and inside a generated solution.
"""

import numpy as np

SCALES = ("raw", "log")
# Pairs of bands, (first - second) / (first + second); ndsi after Hall et al. 1995, ndwi after McFeeters 1996.
INDICES = {
    "ndsi": ("green", "swir1"),
    "ndwi": ("green", "nir"),
    "nd-red-swir1": ("red", "swir1"),
    "nd-blue-thermal": ("blue", "thermal"),
    "nd-blue-red": ("blue", "red"),
}


def valid_pixels(tile):
    """bool (H, W): False where every band of the tile (C, H, W) is 0, which means no data."""
    return (tile != 0).any(axis=0)


def channel_names(bands, indices=(), texture=None):
    """Names of the model's channels in their order; texture: None or {"band", "properties", …}."""
    properties = texture["properties"] if texture else ()
    return [*bands, *indices, *(f"{texture['band']}-{name}" for name in properties)]


def make_channels(tile, *, bands, scale="raw", indices=(), texture_maps=None, relative=()):
    """float32 (C', H, W): the bands of a tile (C, H, W), raw or as log(1 + value), indices, then texture (P, H, W).

    relative: bands whose mean over the tile's pixels with data is taken from them.
    """
    tile = np.asarray(tile, dtype=np.float32)
    parts = [np.log1p(np.maximum(tile, 0.0)) if scale == "log" else tile]
    for name in indices:
        first, second = (tile[list(bands).index(band)] for band in INDICES[name])
        total = first + second
        index = np.divide(first - second, total, out=np.zeros_like(total), where=total != 0)
        parts.append(index[None])
    if texture_maps is not None:
        parts.append(np.asarray(texture_maps, dtype=np.float32))
    channels = np.concatenate(parts).astype(np.float32, copy=False)
    valid = valid_pixels(tile)
    for place in (list(bands).index(band) for band in relative if valid.any()):
        channels[place] -= channels[place][valid].mean(dtype=np.float64)
    return channels


def standardise(channels, valid, mean, std):
    """Channels (C, H, W) at mean 0 and deviation 1 of the training rows; 0 where there is no data."""
    mean, std = (np.asarray(value, dtype=np.float32)[:, None, None] for value in (mean, std))
    return np.where(valid, (channels - mean) / std, np.float32(0.0)).astype(np.float32, copy=False)


def model_input(tile, spec, texture_maps=None):
    """(image float32 (C', H, W), valid bool (H, W)) of a raw tile, as the spec of a checkpoint says."""
    valid, scaling = valid_pixels(tile), spec["scaling"]
    channels = make_channels(
        tile, bands=spec["bands"], scale=scaling["scale"], indices=scaling["indices"], texture_maps=texture_maps,
        relative=scaling.get("relative", ()),
    )  # fmt: skip
    return standardise(channels, valid, spec["mean"], spec["std"]), valid


def channel_statistics(pairs):
    """(mean, std) lists over all valid pixels of (channels (C, H, W), valid (H, W)) pairs; sums in float64.

    ValueError where no pixel is valid. A channel that never varies gets a deviation of 1.
    """
    count, total, square = 0, 0.0, 0.0
    for channels, valid in pairs:
        values = channels[:, valid].astype(np.float64)
        count += values.shape[1]
        total = total + values.sum(axis=1)
        square = square + (values**2).sum(axis=1)
    if not count:
        raise ValueError("no valid pixel in any tile")
    mean = total / count
    std = np.sqrt(np.maximum(square / count - mean**2, 0.0))
    return mean.tolist(), np.where(std > 1e-6, std, 1.0).tolist()
