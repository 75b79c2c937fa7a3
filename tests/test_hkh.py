import json

import numpy as np
import pytest
from test_glacier_files import error

from common.datasets import blocks, glacier_files, hkh
from common.errors import InputError

THREE = ("background", "glacier", "debris")


def slice_of(draws, glacier, size=20, masks=3):
    """(image (size,size,15), mask): channel c holds about 100 c; the first rows of that share are glacier."""
    image = np.round(draws.normal(0, 5, (size, size, 15)) + 100 * (np.arange(15) + 1)).astype(np.float32)
    image[:, -3:] = 0  # no data at the right
    mask = np.zeros((size, size, 3), np.float32)
    mask[: round(glacier * size), :, 0] = 1
    mask[: round(glacier * size), : size // 2, 1] = 1
    mask[: round(glacier * size), size // 2 :, 2] = 1
    return image, mask[..., 3 - masks :]


def write(folder, scene, k, image, mask):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"slice_{scene}_img_{k}.npy", image)
    np.save(folder / f"slice_{scene}_mask_{k}.npy", mask)


@pytest.fixture
def slices(tmp_path):
    """Seven slices of three scenes, shares of glacier 0 to .6 (.05 in two of them, .1 exactly in one)."""
    draws, folder = np.random.default_rng(0), tmp_path / "HKH"
    for i, share in enumerate((0.0, 0.05, 0.1, 0.3, 0.6, 0.05, 0.5)):
        write(folder, f"LE07_{i % 3}", i, *slice_of(draws, share, masks=2 if i == 4 else 3))
    return folder


def prepare(folder, out, **settings):
    return hkh.prepare(folder, out, progress=False, **settings)


def test_keeps_slices_with_enough_glacier(slices, tmp_path):
    rows, statistics = prepare(slices, tmp_path / "out")
    assert rows["id"].tolist() == ["LE07_0_3", "LE07_0_6", "LE07_1_4", "LE07_2_2"]
    assert rows["group"].tolist() == ["LE07_0", "LE07_0", "LE07_1", "LE07_2"]
    assert statistics["slices"] == 7 and statistics["kept"] == 4
    assert statistics["left_out"] == {"too little glacier": 3, "no data": 0}
    assert len(prepare(slices, tmp_path / "all", min_glacier=0.0)[0]) == 7
    assert len(prepare(slices, tmp_path / "half", min_glacier=0.45)[0]) == 2


def test_tiles_hold_the_five_bands_of_the_competition(slices, tmp_path):
    rows, statistics = prepare(slices, tmp_path / "out")
    assert statistics["bands"] == ["blue", "green", "red", "swir1", "thermal"] == list(glacier_files.BANDS)
    again = glacier_files.read_rows(tmp_path / "out")
    assert again.equals(rows)
    for row in again.itertuples():
        scene, _, k = row.id.rpartition("_")
        image = np.load(slices / f"slice_{scene}_img_{k}.npy")
        tile = glacier_files.read_tile(row.path)
        assert row.path.endswith(".npy") and tile.dtype == np.float32
        assert np.array_equal(tile, np.stack([image[..., c] for c in (0, 1, 2, 4, 5)]))


def test_labels_and_shares(slices, tmp_path):
    rows, _ = prepare(slices, tmp_path / "out")
    known = glacier_files.label_map(rows["label"])
    assert known == {0: 0, 1: 1, 2: 2} and glacier_files.outputs_of(known) == THREE == hkh.OUTPUTS
    for row, share in zip(rows.itertuples(), (0.3, 0.5, 0.6, 0.1), strict=True):
        label = glacier_files.read_label(row.label, known)
        wanted = np.zeros((20, 20), np.uint8)
        wanted[: round(20 * share), :10] = 1
        wanted[: round(20 * share), 10:17] = 2  # debris, as far as there is data
        assert label.dtype == np.uint8 and np.array_equal(label, wanted)
        assert (row.background, row.glacier, row.debris) == pytest.approx((1 - share, share * 10 / 17, share * 7 / 17))
    measured = glacier_files.class_shares(rows.drop(columns=list(THREE)), known, THREE)
    assert np.allclose(measured[list(THREE)], rows[list(THREE)])
    assert glacier_files.class_shares(rows, known, THREE).equals(rows)


def test_statistics_of_pixels_with_data(slices, tmp_path):
    rows, statistics = prepare(slices, tmp_path / "out")
    pixels = [glacier_files.read_tile(path)[:, :, :17].reshape(5, -1) for path in rows["path"]]
    everything = np.concatenate(pixels, axis=1).astype(np.float64)
    assert statistics["pixels"] == everything.shape[1] == 4 * 20 * 17
    assert np.allclose(statistics["mean"], everything.mean(1), rtol=1e-12)
    assert np.allclose(statistics["std"], everything.std(1), rtol=1e-10)


def test_other_channels_and_types(slices, tmp_path):
    rows, statistics = prepare(slices, tmp_path / "out", channels=(13, 0))
    assert statistics["bands"] == ["elevation", "blue"]
    tile = np.load(rows["path"][0])
    assert tile.shape == (2, 20, 20) and tile.dtype == np.uint16
    image, mask = slice_of(np.random.default_rng(1), 0.5)
    for value, kind in ((200.0, np.uint8), (-3.0, np.float16), (1 / 3, np.float32), (1e5, np.float32)):
        image[..., 0] = value
        write(tmp_path / f"one{value}", "s", 0, image, mask)
        rows, _ = prepare(tmp_path / f"one{value}", tmp_path / f"out{value}", channels=(0,))
        assert np.load(rows["path"][0]).dtype == kind
        assert glacier_files.read_tile(rows["path"][0])[0, 0, 0] == np.float32(value)


def test_nan_becomes_zero(tmp_path):
    image, mask = slice_of(np.random.default_rng(1), 0.5)
    image[4, 5, :] = np.nan  # no data at all
    image[6, 7, 4] = np.nan  # in one band
    write(tmp_path / "HKH", "s", 0, image, mask)
    rows, statistics = prepare(tmp_path / "HKH", tmp_path / "out")
    tile, label = glacier_files.read_tile(rows["path"][0]), np.load(rows["label"][0])
    assert (tile[:, 4, 5] == 0).all() and label[4, 5] == 0
    assert (tile[:, 6, 7] == 0).tolist() == [False, False, False, True, False] and label[6, 7] == 1
    assert statistics["pixels"] == 20 * 17 - 1


def test_slice_without_data_is_left_out(slices, tmp_path):
    write(slices, "dark", 9, np.full((20, 20, 15), np.nan), np.ones((20, 20, 3)))
    rows, statistics = prepare(slices, tmp_path / "out")
    assert len(rows) == 4 and statistics["left_out"]["no data"] == 1


def test_merged_masks():
    mask = np.zeros((2, 4, 3))
    mask[0, :3, 0] = mask[0, 0, 1] = mask[0, 1, 2] = 1  # clean ice, debris, glacier of neither kind, background
    assert hkh.merge_masks(mask, "m").tolist() == [[1, 2, 1, 0], [0, 0, 0, 0]]
    assert hkh.merge_masks(255 * mask, "m").tolist() == [[1, 2, 1, 0], [0, 0, 0, 0]]
    mask[0, 0] = np.nan
    assert hkh.merge_masks(mask, "m").tolist() == [[0, 2, 1, 0], [0, 0, 0, 0]]
    both = np.ones((1, 1, 2))
    assert hkh.merge_masks(both, "m").tolist() == [[2]]


@pytest.mark.parametrize(
    "mask, word",
    [(np.zeros((4, 4)), "(4, 4)"), (np.zeros((4, 4, 4)), "(4, 4, 4)"), (np.full((4, 4, 3), 0.5), "0.5"),
     (np.stack([np.zeros((4, 4)), np.ones((4, 4)), np.zeros((4, 4))], -1), "order")],
)  # fmt: skip
def test_wrong_masks(mask, word):
    error(lambda: hkh.merge_masks(mask, "slice_a_mask_0.npy"), "slice_a_mask_0.npy", word)


def test_wrong_files(slices, tmp_path):
    out = tmp_path / "out"
    error(lambda: prepare(slices, out, min_glacier=10), "min_glacier 10")
    error(lambda: prepare(slices, out, channels=(0, 15)), "channels 0 15")
    error(lambda: prepare(slices, out, channels=(0, 0)), "channels 0 0")
    error(lambda: prepare(slices, tmp_path / "none", min_glacier=0.9), "90 % glacier")
    error(lambda: prepare(tmp_path / "away", out), "no slice_")
    np.save(slices / "slice_LE07_0_img_3.npy", np.ones((20, 20, 5)))
    error(lambda: prepare(slices, out), "slice_LE07_0_img_3.npy", "(20, 20, 5)")
    np.save(slices / "slice_LE07_0_img_3.npy", np.ones((10, 20, 15)))
    error(lambda: prepare(slices, tmp_path / "two"), "slice_LE07_0_mask_3.npy", "(20, 20)", "(10, 20)")
    (slices / "slice_LE07_0_img_3.npy").write_bytes(b"")
    error(lambda: prepare(slices, tmp_path / "three"), "slice_LE07_0_img_3.npy", "cannot be read")
    (slices / "slice_LE07_0_mask_3.npy").unlink()
    error(lambda: prepare(slices, tmp_path / "four"), "slice_LE07_0_mask_3.npy", "not there")
    assert not (out / glacier_files.PREPARED).exists()


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_cut_off_and_continued(slices, tmp_path, monkeypatch):
    prepare(slices, tmp_path / "whole")
    out, calls = tmp_path / "out", []
    merge = hkh.merge_masks

    def cut(mask, path):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return merge(mask, path)

    monkeypatch.setattr(hkh, "merge_masks", cut)
    with pytest.raises(KeyboardInterrupt):
        prepare(slices, out)
    with pytest.raises(InputError):
        glacier_files.read_rows(out)  # not whole
    kept = {path: path.stat().st_mtime_ns for path in out.glob("tiles/*.npy")}
    rows, _ = prepare(slices, out)
    assert kept and all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert content(out) == content(tmp_path / "whole")
    before = len(calls)
    assert prepare(slices, out)[0].equals(rows) and len(calls) == before  # finished: nothing is read again


def test_other_settings_are_refused(slices, tmp_path):
    out = tmp_path / "out"
    prepare(slices, out)
    error(lambda: prepare(slices, out, min_glacier=0.45), str(out), "--force")
    write(slices, "new", 1, *slice_of(np.random.default_rng(2), 0.5))
    error(lambda: prepare(slices, out), str(out), "--force")
    rows, _ = prepare(slices, out, min_glacier=0.45, force=True)
    assert rows["id"].tolist() == ["LE07_0_6", "LE07_1_4", "new_1"]
    assert len(list(out.glob("tiles/*.npy"))) == len(list(out.glob("labels/*.npy"))) == 3
    assert json.loads((out / "statistics.json").read_text()) == hkh.read_statistics(out)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    error(lambda: prepare(slices, other), str(other), "other files")


def test_folds_of_scenes(slices, tmp_path):
    rows, _ = prepare(slices, tmp_path / "out")
    fold, group = blocks.make_folds(rows, scheme="blocks", folds=3, outputs=THREE)
    assert sorted(set(fold)) == [0, 1, 2] and group.tolist() == rows["group"].tolist()


def test_missing_tile_of_a_prepared_folder(slices, tmp_path):
    rows, _ = prepare(slices, tmp_path / "out")
    assert glacier_files.profile_of(rows["path"][0])["width"] == 20
    (tmp_path / "out" / "tiles" / "LE07_0_3.npy").unlink()
    error(lambda: glacier_files.read_rows(tmp_path / "out"), "LE07_0_3.npy", "1 of 4", "prepare")
