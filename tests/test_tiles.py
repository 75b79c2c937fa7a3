"""Tiles and crops as training and inference see them: from files, from the cache or from memory, always the same."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from common.datasets import tiles as module
from common.datasets.crops import IGNORED, draw_crop, plan_crops
from common.datasets.inputs import channel_statistics, make_channels
from common.datasets.sampling import EpochBatches, make_loader
from common.datasets.texture import glcm
from common.datasets.tile_transforms import TileAugment
from common.datasets.tiles import Source, TileDataset, TileStore, as_sample, collate, init_worker, resized
from common.errors import InputError

SIZES = [(40, 48), (40, 40), (56, 40)]
SPEC = {
    "bands": ["red", "swir1"],
    "inputs": ["red", "swir1", "nd-red-swir1", "swir1-contrast"],
    "label_map": {"0": 0, "9": 1},
    "scaling": {
        "scale": "log",
        "indices": ["nd-red-swir1"],
        "texture": {"band": "swir1", "properties": ["contrast"], "levels": 8, "window": 3, "low": 5.0, "high": 95.0},
    },
    "mean": [3.0, 3.0, 0.0, 5.0],
    "std": [1.0, 2.0, 0.5, 4.0],
}
PLAIN = SPEC | {"scaling": SPEC["scaling"] | {"texture": None}, "inputs": SPEC["inputs"][:3], "mean": [3.0, 3.0, 0.0],
                "std": [1.0, 2.0, 0.5]}  # fmt: skip
READS: list[str] = []


def load(path) -> np.ndarray:
    READS.append(Path(path).name)
    try:
        with open(path, "rb") as file:
            return np.load(file)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read") from error


def read_tile(path, bands) -> np.ndarray:
    return load(path)


def read_label(path, known) -> np.ndarray:
    raw = load(path)
    return np.select([raw == int(value) for value in known], list(known.values())).astype(np.uint8)


def files_of(path) -> list[Path]:
    return [Path(path)]


def size_of(path) -> tuple[int, int]:
    return 40, 40


SOURCE = Source(read_tile=read_tile, read_label=read_label, files_of=files_of, size_of=size_of)


def write(path: Path, array: np.ndarray) -> None:
    """An array under any name, with a time of change of its own however fast the disk's clock goes."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    with open(path, "wb") as file:
        np.save(file, array)
    if path.stat().st_mtime_ns <= before:
        os.utime(path, ns=(before + 10**6, before + 10**6))


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    """Three tiles of different sizes: a third without data, labels 0 and 9, some of them where there is no data."""
    rng, lines = np.random.default_rng(0), []
    for k, size in enumerate(SIZES):
        tile = rng.uniform(1, 99, (2, *size)).astype(np.float32)
        tile[:, : size[0] // 3, : size[1] // 2] = 0
        tile[0, -3:, -3:] = 0
        label = np.where(rng.random(size) < 0.3, 9, 0).astype(np.float32)
        write(tmp_path / f"t{k}.tile", tile)
        write(tmp_path / f"t{k}.label", label)
        lines.append((f"t{k}", str(tmp_path / f"t{k}.tile"), str(tmp_path / f"t{k}.label")))
    READS.clear()
    return pd.DataFrame(lines, columns=["id", "path", "label"])


def array_of(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        return np.load(file)


def expected_window(row, y, x, height, width):
    """The window cut from the whole tile after everything was computed there."""
    tile, raw = array_of(row.path), array_of(row.label)
    valid = (tile != 0).any(0)
    texture = glcm(tile[1], low=5.0, high=95.0, properties=("contrast",), levels=8, window=3)
    channels = make_channels(tile, bands=["red", "swir1"], scale="log", indices=["nd-red-swir1"], texture_maps=texture)
    label = np.where(valid, raw == 9, 255).astype(np.uint8)
    return tuple(plane[..., y : y + height, x : x + width] for plane in (channels, valid, label))


@pytest.mark.parametrize("kind", ["cache", "memory", "neither", "both"])
def test_every_store_gives_the_windows_of_the_whole_tile(rows, tmp_path, kind):
    cache = str(tmp_path / "cache") if kind in ("cache", "both") else None
    store = TileStore(rows, SPEC, SOURCE, cache=cache, keep=kind in ("memory", "both"))
    for _ in range(2):  # the second time from where it is kept
        for index, row in enumerate(rows.itertuples()):
            for area in ((0, 0, *SIZES[index]), (3, 7, 16, 20), (24, 24, 16, 16)):
                for got, wanted in zip(store.window(index, *area), expected_window(row, *area), strict=True):
                    np.testing.assert_array_equal(got, wanted)
                    assert got.dtype == wanted.dtype
            for got, wanted in zip(store.whole(index), store.window(index, 0, 0, *SIZES[index]), strict=True):
                np.testing.assert_array_equal(got, wanted)
    if kind != "neither":
        assert sorted(READS) == sorted(f"t{k}.{part}" for k in range(3) for part in ("tile", "label")), "read once"
    assert (tmp_path / "cache").exists() == (cache is not None)


def test_the_cache_is_not_used_after_a_pixel_a_label_or_a_setting_changed(rows, tmp_path):
    def look(spec=SPEC):
        READS.clear()
        store = TileStore(rows, spec, SOURCE, cache=str(tmp_path / "cache"), keep=False)
        return [np.array(plane) for plane in store.whole(0)], list(READS)

    look()
    (channels, valid, label), read = look()
    assert read == [], "nothing is read while nothing changed"
    path, tile = Path(rows["path"][0]), array_of(rows["path"][0])
    y, x = np.argwhere(valid)[100]
    tile[:, y, x] = 0  # no longer data
    write(path, tile)
    (later, later_valid, later_label), read = look()
    assert "t0.tile" in read and "t1.tile" not in read
    assert valid[y, x] and not later_valid[y, x] and later_label[y, x] == 255
    assert (later[:2, y, x] == 0).all() and (later != channels).any(0).sum() <= 9, "the pixel and its texture"
    raw = array_of(rows["label"][0])
    y, x = np.argwhere(valid)[-1]
    raw[y, x] = 9 - raw[y, x]
    write(Path(rows["label"][0]), raw)
    (_, _, turned), read = look()
    assert read == ["t0.label"] and turned[y, x] == 1 - later_label[y, x] and (turned != later_label).sum() == 1
    (_, _, swapped), _ = look(SPEC | {"label_map": {"0": 1, "9": 0}})
    np.testing.assert_array_equal(swapped, np.where(turned == 255, 255, 1 - turned))
    texture = SPEC["scaling"]["texture"] | {"window": 5}
    (wide, _, _), read = look(SPEC | {"scaling": SPEC["scaling"] | {"texture": texture}})
    assert read == [] and (wide[3] != later[3]).any() and (wide[:3] == later[:3]).all()


def test_a_label_of_another_size_names_its_file(rows, tmp_path):
    write(Path(rows["label"][1]), np.zeros((40, 41), np.float32))
    store = TileStore(rows, SPEC, SOURCE, cache=None)
    with pytest.raises(InputError, match=r"t1.label: its size \(40, 41\) is not the tile's \(40, 40\)"):
        store.label(1)


def test_a_worker_gets_names_and_no_pixels(rows, tmp_path):
    store = TileStore(rows, SPEC, SOURCE, cache=None)
    first = store.whole(2)
    assert store.memory and len(pickle.dumps(store)) < 4000
    sent = pickle.loads(pickle.dumps(store))
    assert sent.memory == {} and store.memory, "the one that was sent still has its own"
    for one, other in zip(sent.whole(2), first, strict=True):
        np.testing.assert_array_equal(one, other)


def test_npy_slices_are_read_by_window_and_a_broken_one_is_named(rows, tmp_path):
    tile = array_of(rows["path"][0])
    np.save(tmp_path / "slice.npy", tile.astype(np.float16))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    paths = [str(tmp_path / name) for name in ("slice.npy", "broken.npy", "gone.npy")]
    slices = pd.DataFrame({"id": ["a", "b", "c"], "path": paths})
    source = replace(SOURCE, mapped=True)
    store = TileStore(slices, PLAIN, source, cache=str(tmp_path / "cache"))
    assert isinstance(store.tile(0), np.memmap) and not (tmp_path / "cache").exists(), "it is its own cache"
    channels, valid, label = store.window(0, 20, 10, 8, 8)
    assert channels.dtype == np.float32 and label is None
    np.testing.assert_allclose(channels[0], np.log1p(tile[0, 20:28, 10:18].astype(np.float16)), rtol=1e-3)
    for index, name in ((1, "broken.npy"), (2, "gone.npy")):
        with pytest.raises(InputError, match=f"{name}: not a readable npy tile"):
            store.tile(index)
    seen = TileDataset(slices, PLAIN, source, cache=None, on_bad="mark")
    assert [seen[(0, index)]["bad"] for index in range(3)] == [False, True, True]


def test_npy_tiles_of_a_source_that_does_not_map_them_are_read_by_its_reader(rows, tmp_path):
    """Such a file may hold other bands and values for no data."""
    np.save(tmp_path / "raw.npy", np.full((2, 8, 8), -3.4e38, np.float32))
    reader = lambda path, bands: np.where(np.load(path) < -1e30, 0, np.load(path))[: len(bands)]  # noqa: E731
    raw = pd.DataFrame({"id": ["a"], "path": [str(tmp_path / "raw.npy")]})
    for cache in (None, str(tmp_path / "cache")):
        store = TileStore(raw, PLAIN, replace(SOURCE, read_tile=reader), cache=cache)
        assert store.tile(0).max() == store.tile(0).min() == 0


# samples


def test_whole_tiles_are_standardised_and_no_data_is_background(rows):
    whole = TileDataset(rows, SPEC, SOURCE, cache=None)
    assert len(whole) == 3
    for index, row in enumerate(rows.itertuples()):
        sample = whole[(4, index)]
        channels, valid, label = expected_window(row, 0, 0, *SIZES[index])
        wanted = (channels - np.array(SPEC["mean"])[:, None, None]) / np.array(SPEC["std"])[:, None, None]
        np.testing.assert_allclose(sample["image"], np.where(valid, wanted, 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(sample["target"], np.where(valid, label, 0))
        np.testing.assert_array_equal(sample["valid"], valid)
        assert (sample["id"], sample["bad"], sample["labelled"]) == (f"t{index}", False, True)
        assert sample["target"].dtype == torch.int64 and sample["valid"].dtype == torch.bool
    unlabelled = TileDataset(rows.drop(columns="label"), SPEC, SOURCE, cache=None)[(0, 1)]
    assert not unlabelled["labelled"] and not unlabelled["target"].any() and unlabelled["valid"].any()


def test_an_unreadable_tile_is_an_error_or_all_no_data(rows, capsys):
    Path(rows["path"][1]).write_bytes(b"cut off")
    with pytest.raises(InputError, match="t1.tile"):
        TileDataset(rows, SPEC, SOURCE, cache=None)[(0, 1)]
    sample = TileDataset(rows, SPEC, SOURCE, cache=None, on_bad="mark")[(0, 1)]
    assert "unreadable" in capsys.readouterr().out
    assert sample["bad"] and sample["image"].shape == (4, 40, 40) and not sample["image"].any()
    assert not sample["valid"].any() and not sample["target"].any()
    assert not TileDataset(rows, SPEC, SOURCE, cache=None, on_bad="mark")[(0, 0)]["bad"]


def test_tiles_of_different_sizes_make_a_batch(rows):
    samples = [TileDataset(rows, SPEC, SOURCE, cache=None)[(0, index)] for index in range(3)]
    batch = collate(samples)
    assert batch["image"].shape == (3, 4, 56, 48) and batch["size"] == SIZES and batch["id"] == ["t0", "t1", "t2"]
    assert batch["valid"].dtype == torch.bool and batch["bad"].tolist() == [False] * 3 and batch["labelled"] is True
    for index, (height, width) in enumerate(SIZES):
        for name in ("image", "target", "valid"):
            plane = batch[name][index].clone()
            assert torch.equal(plane[..., :height, :width], samples[index][name]), name
            plane[..., :height, :width] = 0
            assert not plane.any(), "no data around it"


def test_a_window_beyond_the_tile_has_no_data_there(rows):
    """On any side, or on all; in the model's channels too, and at another size."""
    store = TileStore(rows, SPEC, SOURCE, cache=None)
    for y, x, height, width in ((-8, -3, 60, 70), (-5, 10, 20, 20), (30, 40, 25, 25), (0, -9, 8, 20)):
        found = store.window(0, y, x, height, width)
        top, left, bottom, right = max(-y, 0), max(-x, 0), min(40 - y, height), min(48 - x, width)
        inside = expected_window(rows.iloc[0], y + top, x + left, bottom - top, right - left)
        for got, wanted, fill in zip(found, inside, (0, False, IGNORED), strict=True):
            assert got.shape[-2:] == (height, width) and got.dtype == wanted.dtype
            np.testing.assert_array_equal(got[..., top:bottom, left:right], wanted)
            got[..., top:bottom, left:right] = fill
            assert (got == fill).all()
    unlabelled = TileStore(rows.drop(columns="label"), SPEC, SOURCE, cache=None).window(0, -8, -3, 60, 70)
    assert unlabelled[2] is None and unlabelled[1].shape == (60, 70)
    _, data, label = resized(*store.window(0, -20, -16, 80, 80), 40)
    assert not data[:10].any() and (label[:10] == IGNORED).all() and not data[30:].any() and data[10:30].any()


def test_labels_are_cached_by_the_bands_too(rows, tmp_path):
    """Where the label is known depends on where the bands have data."""
    path = rows.iloc[0]["path"]
    full, cache = np.load(open(path, "rb")), str(tmp_path / "cache")
    full[1, :9] = 7  # the second band has data where the first has none
    full[0, :9] = 0
    write(Path(path), full)
    source = Source(read_tile=lambda path, bands: load(path)[: len(bands)], read_label=read_label, files_of=files_of,
                    size_of=size_of)  # fmt: skip
    for bands, known in ((["red"], False), (["red", "swir1"], True)):
        label = TileStore(rows, PLAIN | {"bands": bands}, source, cache=cache).label(0)
        assert (label[:9] != IGNORED).all() == known and (label[:9] != IGNORED).any() == known


# crops


def crops_of(rows, *, augment=False, seed=3, count=12, cache=None, spec=PLAIN) -> TileDataset:
    labels = [TileStore(rows, spec, SOURCE, cache=None).label(index) for index in range(len(rows))]
    plan = plan_crops(labels, classes=("ground", "ice"), crop=16, target={"ground": 0.5, "ice": 0.5})
    turns = TileAugment({"hflip": 0.5, "rot90": 0.75, "noise": 1, "affine": 0.5}, seed=seed) if augment else None
    return TileDataset(rows, spec, SOURCE, cache=cache, plan=plan, count=count, augment=turns, seed=seed)


def equal(one: dict, other: dict) -> bool:
    return (
        all(torch.equal(one[name], other[name]) for name in ("image", "target", "valid")) and one["id"] == other["id"]
    )


def test_a_crop_is_the_window_that_the_plan_draws(rows):
    crops, store = crops_of(rows), TileStore(rows, PLAIN, SOURCE, cache=None)
    assert len(crops) == 12
    for epoch, index in ((0, 0), (0, 11), (5, 3)):
        tile, y, x = draw_crop(crops.plan, 3, epoch, index)
        channels, valid, label = store.window(tile, y, x, 16, 16)
        sample = crops[(epoch, index)]
        wanted = (channels - np.array(PLAIN["mean"])[:, None, None]) / np.array(PLAIN["std"])[:, None, None]
        np.testing.assert_allclose(sample["image"], np.where(valid, wanted, 0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(sample["target"], np.where(valid, label, 0))
        assert sample["id"] == f"t{tile}"


def test_a_crop_is_a_function_of_seed_epoch_and_index(rows, tmp_path):
    keys = [(epoch, index) for epoch in range(3) for index in range(12)]
    crops = crops_of(rows, augment=True)
    first = [crops[key] for key in keys]
    again = crops_of(rows, augment=True, cache=str(tmp_path / "cache"))
    order = np.random.default_rng(0).permutation(len(keys))
    assert all(equal(again[keys[place]], first[place]) for place in order), "in whatever order, from file or memory"
    for k, one in enumerate(first):
        assert not any(equal(one, other) for other in first[:k]), "no crop is shown twice as it is"
    others = crops_of(rows, augment=True, seed=4)
    assert not any(equal(others[key], one) for key, one in zip(keys, first, strict=True))


def batches_of(dataset, workers: int) -> list[dict]:
    """Two epochs through the loader that training has."""
    loader = make_loader(dataset, EpochBatches(len(dataset), 5, seed=1), workers=workers, collate=collate,
                         init_worker=init_worker)  # fmt: skip
    found = []
    for epoch in (0, 1):
        loader.batch_sampler.epoch = epoch
        found += list(loader)
    return found


def test_two_workers_give_what_none_gives(rows, tmp_path):
    dataset = crops_of(rows, augment=True, cache=str(tmp_path / "cache"))
    alone, threads = batches_of(dataset, 0), torch.get_num_threads()
    helped = batches_of(dataset, 2)
    assert len(alone) == len(helped) == 6 and torch.get_num_threads() == threads
    assert all(equal(one, other) for one, other in zip(alone, helped, strict=True))
    assert not equal(alone[0], alone[3]), "another epoch"


def test_statistics_through_the_store_are_of_pixels_with_data(rows):
    store = TileStore(rows.iloc[:2], PLAIN, SOURCE, cache=None)
    mean, std = channel_statistics(store.whole(index)[:2] for index in range(2))
    parts = [expected_window(row, 0, 0, *SIZES[k]) for k, row in enumerate(rows.iloc[:2].itertuples())]
    pixels = np.concatenate([channels[:3, valid] for channels, valid, _ in parts], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(1), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(1), rtol=1e-6)


def test_a_new_version_of_what_is_stored_is_stored_anew(rows, tmp_path, monkeypatch):
    TileStore(rows, SPEC, SOURCE, cache=str(tmp_path / "cache")).tile(0)
    READS.clear()
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    TileStore(rows, SPEC, SOURCE, cache=str(tmp_path / "cache")).tile(0)
    assert READS == ["t0.tile"]


@pytest.mark.parametrize(("side", "wanted"), [(64, 32), (32, 64), (50, 31)])
def test_a_window_at_another_size_takes_nothing_from_no_data(side, wanted):
    data = np.random.default_rng(0).random((side, side)) > 0.3
    label = np.where(data, 1, IGNORED).astype(np.uint8)
    image, there, labels = resized(np.where(data, np.float32(5), 0)[None], data, label, wanted)
    assert image.shape == (1, wanted, wanted) and there.shape == labels.shape == (wanted, wanted)
    np.testing.assert_allclose(image[0][there], 5, atol=1e-5)  # an average over zeros would be less
    assert 0.4 < there.mean() < 0.9 and (image[0][~there] == 0).all()
    np.testing.assert_array_equal(labels == 1, there)


def test_a_pixel_without_a_label_is_predicted_and_not_learnt():
    """255 in a label: data, so the model sees it and answers; not valid, so nothing is learnt or counted there."""
    label = np.array([[0, 1], [IGNORED, 1]], np.uint8)
    sample = as_sample(np.ones((1, 2, 2), np.float32), np.ones((2, 2), bool), label, "a")
    assert sample["data"].all() and sample["valid"].tolist() == [[True, True], [False, True]]
    assert sample["target"].tolist() == [[0, 1], [0, 1]]
