"""Masks as handed in, and the stored class probabilities."""

import numpy as np
import pandas as pd
import pytest
import rasterio
import tifffile
from rasterio.transform import from_origin

from common.errors import InputError
from common.outputs.masks import mask_name, read_probs, validate_masks, write_masks, write_probs

VALUES = (0, 85, 170, 255)


def write_band(path, *, shape=(40, 56), west=567945.0, crs="EPSG:32643"):
    """A first band as the competition has it; written by rasterio, which the code under test does not use."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = {"driver": "GTiff", "height": shape[0], "width": shape[1], "count": 1, "dtype": "float32", "nodata": 0}
    with rasterio.open(path, "w", **frame, crs=crs, transform=from_origin(west, 3771855.0, 30, 30)) as file:
        file.write(np.full(shape, 9000, np.float32), 1)
    return path


@pytest.fixture
def tiles(tmp_path):
    names = ["B2_B2_masked_02_07.tif", "B2_B2_masked_02_08.tif", "img001.tif"]
    paths = [write_band(tmp_path / "Band1" / name, west=567945.0 + 1680 * k) for k, name in enumerate(names)]
    return pd.DataFrame({"id": ["02_07", "02_08", "001"], "path": list(map(str, paths))})


def random_masks(rows, shape=(40, 56)):
    rng = np.random.default_rng(0)
    return [(row.id, rng.integers(0, 4, shape).astype(np.uint8), row.path) for row in rows.itertuples()]


def test_a_mask_has_the_name_values_and_place_of_the_first_band(tiles, tmp_path):
    masks = random_masks(tiles)
    paths = write_masks(tmp_path / "masks", masks, values=VALUES)
    assert [path.name for path in paths] == ["B2_B2_masked_02_07.tif", "B2_B2_masked_02_08.tif", "img001.tif"]
    for path, (_, classes, source) in zip(paths, masks, strict=True):
        with rasterio.open(path) as mask, rasterio.open(source) as band:
            assert (mask.crs, mask.transform, mask.shape) == (band.crs, band.transform, band.shape)
            assert mask.crs.to_epsg() == 32643
            assert (mask.dtypes, mask.count, mask.nodata) == (("uint8",), 1, None)
            np.testing.assert_array_equal(mask.read(1), np.choose(classes, VALUES))
    assert validate_masks(tmp_path / "masks", tiles, values=VALUES) == 3


def test_two_classes_and_slices_without_georeference(tmp_path):
    np.save(tmp_path / "slice_4_img_7.npy", np.ones((5, 16, 24), np.float32))
    rows = pd.DataFrame({"id": ["4_7"], "path": [str(tmp_path / "slice_4_img_7.npy")]})
    mask = np.eye(16, 24, dtype=np.uint8)
    paths = write_masks(tmp_path / "out", [("4_7", mask, rows["path"][0])], values=(0, 255))
    assert paths[0].name == mask_name(rows["path"][0]) == "slice_4_img_7.tif"
    np.testing.assert_array_equal(tifffile.imread(paths[0]), mask * 255)
    assert validate_masks(tmp_path / "out", rows, values=(0, 255)) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda masks: [(masks[0][0], masks[0][1][:, 1:], masks[0][2])], r"02_07: the mask is \(40, 55\)"),
        (lambda masks: [(masks[0][0], masks[0][1] + 1, masks[0][2])], "02_07: the mask holds class 4"),
        (lambda masks: [masks[0], ("b", *masks[0][1:])], "b: its mask would replace that of 02_07"),
        (lambda masks: [(masks[0][0], masks[0][1], masks[0][2] + ".tif")], "masked_02_07.tif.tif: not a readable"),
    ],
)
def test_a_wrong_mask_is_refused_and_not_written(tiles, tmp_path, change, said):
    masks = change(random_masks(tiles))
    with pytest.raises(InputError, match=said):
        write_masks(tmp_path / "masks", masks, values=VALUES)
    assert len(list((tmp_path / "masks").glob("*"))) == len(masks) - 1


def spoil_values(path, source):
    with rasterio.open(path, "r+") as file:
        file.write(np.full((1, 1), 84, np.uint8), 1, window=((0, 1), (0, 1)))


def spoil_place(path, source):
    with rasterio.open(path, "r+") as file:
        file.transform = from_origin(0, 0, 30, 30)


def spoil_type(path, source):
    tifffile.imwrite(path, np.zeros((40, 56), np.uint16))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_values, "02_08.tif: holds values 84"),
        (spoil_place, "02_08.tif: its georeference is not that of"),
        (spoil_type, "02_08.tif: is uint16"),
        (lambda path, source: path.unlink(), "lacks masks: B2_B2_masked_02_08.tif"),
        (lambda path, source: path.write_bytes(b"II"), "02_08.tif: not a readable TIFF"),
        (lambda path, source: (path.parent / "img002.tif").write_bytes(path.read_bytes()), "of no tile: img002.tif"),
    ],
)
def test_validation_names_the_file(tiles, tmp_path, spoil, said):
    paths = write_masks(tmp_path / "masks", random_masks(tiles), values=VALUES)
    spoil(paths[1], tiles["path"][1])
    with pytest.raises(InputError, match=said):
        validate_masks(tmp_path / "masks", tiles, values=VALUES)


def test_real_tiles(glacier_data, tmp_path):
    sources = sorted((glacier_data / "Train" / "Band1").glob("*.tif"))[:3]
    rows = pd.DataFrame({"id": [path.stem[-5:] for path in sources], "path": list(map(str, sources))})
    write_masks(tmp_path, random_masks(rows, (512, 512)), values=VALUES)
    assert validate_masks(tmp_path, rows, values=VALUES) == 3
    with rasterio.open(tmp_path / sources[0].name) as mask, rasterio.open(sources[0]) as band:
        assert (mask.crs, mask.transform) == (band.crs, band.transform)


def test_probabilities_come_back_as_float16_has_them(tmp_path):
    prob = np.random.default_rng(1).dirichlet(np.ones(4), (8, 9)).transpose(2, 0, 1).astype(np.float32)
    path = write_probs(tmp_path / "oof" / "02_07.npz", prob)
    back = read_probs(path, classes=4)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, prob.astype(np.float16).astype(np.float32))
    with np.load(path) as file:
        assert file["prob"].dtype == np.float16


def test_bad_probabilities(tmp_path):
    prob = np.full((2, 4, 4), 0.5, np.float32)
    path = write_probs(tmp_path / "a.npz", prob)
    with pytest.raises(InputError, match=r"a.npz: prob is \(2, 4, 4\), wanted \(4,H,W\)"):
        read_probs(path, classes=4)
    with pytest.raises(InputError, match="b.npz: no such file"):
        read_probs(tmp_path / "b.npz")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(InputError, match="a.npz: holds no array prob"):
        read_probs(path)
    for value in (np.nan, -0.5, 7.0):
        with pytest.raises(InputError, match="c.npz: probabilities are not finite or not within"):
            write_probs(tmp_path / "c.npz", np.where(np.eye(4) > 0, value, prob).astype(np.float32))
    assert not (tmp_path / "c.npz").exists()
