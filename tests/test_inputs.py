"""What the model sees of a tile, against formulas written out pixel by pixel; statistics against numpy's own."""

import ast
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.datasets import inputs
from common.datasets.inputs import (
    INDICES,
    channel_names,
    channel_statistics,
    make_channels,
    model_input,
    standardise,
    valid_pixels,
)
from common.datasets.tiles import Source
from common.tasks.segmentation_spec import input_statistics, texture_spec

BANDS = ("blue", "green", "red", "swir1", "thermal")
FORMULAS = {
    "ndsi": lambda p: (p["green"], p["swir1"]),
    "nd-red-swir1": lambda p: (p["red"], p["swir1"]),
    "nd-blue-thermal": lambda p: (p["blue"], p["thermal"]),
    "nd-blue-red": lambda p: (p["blue"], p["red"]),
    "ndwi": lambda p: (p["green"], p["nir"]),
}


def random_tile(seed: int, height=6, width=9, bands=BANDS) -> np.ndarray:
    """Raw numbers of the real range; a corner without data, a pixel that is 0 in all bands but one."""
    tile = np.random.default_rng(seed).uniform(3000, 60000, (len(bands), height, width)).astype(np.float32)
    tile[:, :2, :3] = 0
    tile[:-1, 4, 4] = 0
    return tile


def test_no_data_is_zero_in_every_band():
    valid = valid_pixels(random_tile(0))
    assert not valid[:2, :3].any() and valid.sum() == 6 * 9 - 6 and valid[4, 4]


def test_channels_are_bands_indices_and_texture_in_the_order_of_their_names():
    bands = ("thermal", "nir", "red", "green", "swir1", "blue")
    tile, texture = random_tile(1, bands=bands), np.full((2, 6, 9), 7.0)
    names = channel_names(bands, list(INDICES), {"band": "swir1", "properties": ["contrast", "energy"]})
    assert names == [*bands, *INDICES, "swir1-contrast", "swir1-energy"]
    for scale in ("raw", "log"):
        channels = make_channels(tile, bands=bands, scale=scale, indices=list(INDICES), texture_maps=texture)
        assert channels.shape == (len(names), 6, 9) and channels.dtype == np.float32
        for y, x in np.ndindex(6, 9):
            pixel = dict(zip(bands, tile[:, y, x].astype(float), strict=True))
            expected = [math.log(1 + value) if scale == "log" else value for value in pixel.values()]
            for name in INDICES:  # indices are of raw values, whatever the scale
                a, b = FORMULAS[name](pixel)
                expected.append((a - b) / (a + b) if a + b else 0.0)
            np.testing.assert_allclose(channels[:, y, x], [*expected, 7, 7], rtol=2e-6, atol=1e-6)


def test_the_tile_is_not_written_to_and_an_unknown_band_is_an_error():
    tile = random_tile(2)
    before = tile.copy()
    channels = make_channels(tile, bands=BANDS)
    channels += 1
    standardise(tile, valid_pixels(tile), [1.0] * 5, [2.0] * 5)[:] = 9
    np.testing.assert_array_equal(tile, before)
    with pytest.raises(ValueError):
        make_channels(tile, bands=BANDS, indices=["ndwi"])


def test_statistics_are_those_of_all_pixels_with_data_together():
    tiles = [random_tile(seed, height) for seed, height in enumerate((6, 8, 5))]
    mean, std = channel_statistics((tile, valid_pixels(tile)) for tile in tiles)
    pixels = np.concatenate([tile[:, (tile != 0).any(0)] for tile in tiles], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-9)


def test_statistics_of_large_numbers_that_hardly_vary_and_of_none():
    rng = np.random.default_rng(0)
    flat = np.full((1, 50, 50), 65455.0, np.float32)
    noisy = (27000 + rng.normal(0, 0.5, (1, 50, 50))).astype(np.float32)
    tile, every = np.concatenate([flat, noisy]), np.ones((50, 50), bool)
    mean, std = channel_statistics([(tile, every)])
    assert std == [1.0, pytest.approx(noisy.astype(np.float64).std(), rel=1e-4)]
    assert np.isfinite(standardise(tile, every, mean, std)).all()
    with pytest.raises(ValueError, match="no valid pixel"):
        channel_statistics([(tile, ~every)])


def test_standardised_pixels_have_mean_0_deviation_1_and_0_where_there_is_no_data():
    tile = random_tile(3, 40, 40)
    spec = {"bands": list(BANDS), "scaling": {"scale": "log", "indices": ["ndsi"], "texture": None}}
    channels = make_channels(tile, bands=BANDS, scale="log", indices=["ndsi"])
    spec["mean"], spec["std"] = channel_statistics([(channels, valid_pixels(tile))])
    image, valid = model_input(tile, spec)
    assert image.shape == (6, 40, 40) and image.dtype == np.float32
    np.testing.assert_array_equal(valid, (tile != 0).any(0))
    assert (image[:, ~valid] == 0).all() and (image[:, valid] != 0).mean() > 0.99
    np.testing.assert_allclose(image[:, valid].mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(image[:, valid].std(1), 1, atol=1e-4)
    slow = (channels[:, valid] - np.array(spec["mean"])[:, None]) / np.array(spec["std"])[:, None]
    np.testing.assert_allclose(image[:, valid], slow, rtol=1e-4, atol=1e-4)


def tiles_on_disk(folder: Path, count=4) -> tuple[pd.DataFrame, Source, list[np.ndarray]]:
    tiles = [random_tile(seed, 24, 20) * (1 + seed) for seed in range(count)]
    for k, tile in enumerate(tiles):
        np.save(folder / f"t{k}.npy", tile)
    rows = pd.DataFrame({"id": [f"t{k}" for k in range(count)]})
    rows["path"] = [str(folder / f"{name}.npy") for name in rows["id"]]
    nothing = lambda *_: pytest.fail("labels have no part in the statistics of the inputs")  # noqa: E731
    return (
        rows.assign(label="none"),
        Source(lambda path, bands: np.load(path), nothing, lambda path: [Path(path)], nothing),
        tiles,
    )


def test_the_spec_of_a_fold_knows_its_training_rows_only(tmp_path):
    """Mean, deviation and grey levels come from the rows given, from their pixels with data."""
    rows, source, tiles = tiles_on_disk(tmp_path)
    settings = {"cache_images": True, "cache": str(tmp_path / "cache"), "texture": ["contrast"],
                "texture_band": "swir1", "texture_levels": 8, "texture_window": 3}  # fmt: skip
    spec = {"bands": list(BANDS), "label_map": {}, "scaling": {"scale": "raw", "indices": [], "texture": None}}
    for take in ([0, 1], [1, 2, 3]):
        some = rows.iloc[take].reset_index(drop=True)
        pixels = np.concatenate([tiles[k][:, (tiles[k] != 0).any(0)] for k in take], axis=1)
        mean, std = input_statistics(some, spec, settings, source)
        np.testing.assert_allclose(mean, pixels.astype(np.float64).mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(std, pixels.astype(np.float64).std(axis=1), rtol=1e-9)
        texture = texture_spec(some, settings, BANDS, source)
        swir = np.sort(pixels[3])
        for value, share in ((texture["low"], 0.01), (texture["high"], 0.99)):
            at = np.searchsorted(swir, value) / len(swir)
            assert abs(at - share) < 0.06, "of every 17th pixel"
        assert texture["low"] > 0, "no data has no grey level"


def test_the_source_stands_alone():
    """It is copied into solutions for a machine with Python 3.9: numpy and nothing else."""
    tree = ast.parse(Path(inputs.__file__).read_text(), feature_version=(3, 9))
    found = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in found] == ["import numpy as np"]


def test_relative_bands_count_from_their_mean_where_there_is_data():
    tile = random_tile(3, 9, 7)
    tile[:, :4] = 0
    valid = valid_pixels(tile)
    bands = [f"b{k}" for k in range(len(tile))]
    plain = make_channels(tile, bands=bands)
    moved = make_channels(tile, bands=bands, relative=("b1",))
    np.testing.assert_allclose(moved[1], tile[1] - tile[1][valid].mean(), rtol=1e-4)
    others = [k for k in range(len(tile)) if k != 1]
    np.testing.assert_array_equal(moved[others], plain[others])
    raised = np.where(valid, tile + np.array([0, 500, *[0] * (len(tile) - 2)])[:, None, None], 0)
    again = make_channels(raised, bands=bands, relative=("b1",))[1]
    np.testing.assert_allclose(again[valid], moved[1][valid], rtol=1e-4, atol=0.1)
    assert not make_channels(np.zeros_like(tile), bands=bands, relative=("b1",)).any()
    spec = {"bands": bands, "mean": [0] * len(tile), "std": [1] * len(tile),
            "scaling": {"scale": "raw", "indices": [], "relative": ["b1"]}}  # fmt: skip
    np.testing.assert_allclose(model_input(tile, spec)[0][1][valid], moved[1][valid], rtol=1e-5)
