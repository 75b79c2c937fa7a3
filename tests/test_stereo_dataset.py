"""Stereo samples: what a photo, its row and (epoch, index) make of each other, with cache, workers and bad photos."""

import os
import pickle
import time

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.datasets import stereo
from common.datasets.mixing import Mix
from common.datasets.stereo import StereoDataset, collate, init_worker, read_halves
from common.datasets.transforms import StereoAugment
from common.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUTPUTS = ("green", "dead", "clover")
PHOTO = (40, 80)
SIZE = (16, 24)


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*PHOTO, 3), dtype=np.uint8)


@pytest.fixture
def rows(tmp_path) -> pd.DataFrame:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(photo(i)).save(folder / f"ID{i}.png")
    frame = pd.DataFrame({"id": [f"ID{i}" for i in range(8)], "state": ["NSW", "Vic"] * 4})
    frame["path"] = [str(folder / f"{name}.png") for name in frame["id"]]
    for k, name in enumerate(OUTPUTS):
        frame[name] = np.arange(8) * 10.0 + k
    frame.loc[3, "dead"] = np.nan
    return frame


def dataset(rows, **options) -> StereoDataset:
    settings = {"outputs": OUTPUTS, "size": SIZE, "mean": MEAN, "std": STD, "photo_size": PHOTO, "seed": 1}
    return StereoDataset(rows, **(settings | options))


def expected(image: np.ndarray) -> np.ndarray:
    """float64 (2, 3, H, W), written down independently of the dataset."""
    halves = [image[:, :40], image[:, 40:]]
    small = [cv2.resize(h, (SIZE[1], SIZE[0]), interpolation=cv2.INTER_AREA) for h in halves]
    return np.stack([((h / 255.0 - MEAN) / STD).transpose(2, 0, 1) for h in small])


def same(a: dict, b: dict) -> bool:
    tensors = all(torch.equal(a[key], b[key]) for key in ("image", "target", "valid"))
    aux = all(torch.equal(a["aux"][k], b["aux"][k]) for k in a.get("aux", {}))
    return tensors and aux and a["id"] == b["id"]


def test_sample_is_the_normalised_pair_with_its_targets(rows):
    data = dataset(rows)
    assert len(data) == 8
    for i in range(8):
        sample = data[i]
        assert sample["image"].dtype == torch.float32 and sample["image"].shape == (2, 3, *SIZE)
        assert np.abs(sample["image"].numpy() - expected(photo(i))).max() < 1e-5
        assert sample["id"] == f"ID{i}" and set(sample) == {"image", "target", "valid", "id"}
    assert data[2]["target"].tolist() == [20, 21, 22] and data[2]["valid"].all()
    assert data[3]["target"].tolist() == [30, 0, 32] and data[3]["valid"].tolist() == [True, False, True]
    assert data[2]["target"].dtype == torch.float32 and data[2]["valid"].dtype == torch.bool


def test_rows_without_targets(rows):
    sample = dataset(rows[["id", "path"]])[0]
    assert sample["target"].tolist() == [0, 0, 0] and not sample["valid"].any()
    assert np.abs(sample["image"].numpy() - expected(photo(0))).max() < 1e-5


def test_an_index_of_the_rows_that_is_not_0_to_n_does_no_harm(rows):
    part = rows.iloc[[5, 2]]
    sample = dataset(part, mix=Mix(part, seed=0, mixup_prob=0.0))[1]
    assert sample["id"] == "ID2" and sample["target"][0] == 20


def test_without_augmentation_nothing_is_random(rows):
    one, two = dataset(rows, seed=1), dataset(rows, seed=2)
    for i in range(8):
        assert same(one[i], two[4, i]) and same(one[i], one[i])


def test_samples_are_pure_functions_of_epoch_and_index(rows):
    make = lambda: dataset(rows, augment=StereoAugment(seed=1), swap_prob=0.5)  # noqa: E731
    one, two = make(), make()
    forward = [one[e, i] for e in range(2) for i in range(8)]
    backward = [two[e, i] for e in (1, 0) for i in reversed(range(8))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    pictures = {sample["image"].numpy().tobytes() for sample in forward}
    assert len(pictures) == 16


def test_swap_exchanges_halves_with_its_probability(rows):
    plain, data = dataset(rows), dataset(rows, swap_prob=0.5)
    swapped = []
    for epoch in range(25):
        for i in range(8):
            image, base = data[epoch, i]["image"], plain[i]["image"]
            swapped.append(torch.equal(image, base.flip(0)))
            assert swapped[-1] or torch.equal(image, base)
    assert 75 <= sum(swapped) <= 125
    by_epoch = np.reshape(swapped, (25, 8))
    assert (by_epoch.any(0) & ~by_epoch.all(0)).all() and (by_epoch.any(1) & ~by_epoch.all(1)).sum() > 20
    assert all(torch.equal(dataset(rows, swap_prob=1.0)[i]["image"], plain[i]["image"].flip(0)) for i in range(3))


def grey(image: torch.Tensor) -> np.ndarray:
    mean, std = (np.array(x)[:, None, None] for x in (MEAN, STD))
    return (image.numpy() * std + mean) * 255


def test_mixing_treats_both_halves_targets_and_labels_alike(rows):
    labels = {"state": np.eye(2)[[0, 1] * 4]}
    mix = Mix(rows, seed=4, mixup_prob=0.5, cutmix_prob=0.3)
    plain, data = dataset(rows, aux=labels), dataset(rows, aux=labels, mix=mix)
    kinds = set()
    for epoch in range(4):
        for i in range(8):
            plan, sample, own = mix.plan(epoch, i, SIZE), data[epoch, i], plain[i]
            kinds.add("none" if plan is None else "box" if plan.box else "mix")
            if plan is None:
                assert same(sample, own)
                continue
            other = plain[plan.partner]
            weight = np.full(SIZE, plan.weight)
            if plan.box:
                weight[:] = 1
                weight[plan.box[0] : plan.box[1], plan.box[2] : plan.box[3]] = 0
            wanted = weight * grey(own["image"]) + (1 - weight) * grey(other["image"])
            assert np.abs(grey(sample["image"]) - wanted).max() < 0.52
            valid = own["valid"] & other["valid"]
            assert torch.equal(sample["valid"], valid)
            target = plan.weight * own["target"] + (1 - plan.weight) * other["target"]
            assert torch.allclose(sample["target"], torch.where(valid, target, 0.0))
            aux = plan.weight * own["aux"]["state"] + (1 - plan.weight) * other["aux"]["state"]
            assert torch.allclose(sample["aux"]["state"], aux)
    assert kinds == {"none", "box", "mix"}


def test_partner_is_augmented_as_itself(rows):
    mix = Mix(rows, seed=4, mixup_prob=1.0)
    options = {"augment": StereoAugment({"hflip": 0.5}, seed=2), "swap_prob": 0.5}
    plain, data = dataset(rows, **options), dataset(rows, mix=mix, **options)
    for i in range(8):
        plan = mix.plan(3, i, SIZE)
        wanted = plan.weight * grey(plain[3, i]["image"]) + (1 - plan.weight) * grey(plain[3, plan.partner]["image"])
        assert np.abs(grey(data[3, i]["image"]) - wanted).max() < 0.52


def everything(rows, **options) -> StereoDataset:
    settings = {
        "augment": StereoAugment(seed=1),
        "swap_prob": 0.5,
        "mix": Mix(rows, seed=1, mixup_prob=0.3, cutmix_prob=0.3, within=["state"]),
        "aux": {"state": np.eye(2)[[0, 1] * 4]},
    }
    return dataset(rows, **(settings | options))


@pytest.mark.parametrize("workers, batch_size", [(0, 3), (1, 4), (2, 3)])
def test_neither_workers_nor_batch_size_change_a_sample(rows, tmp_path, workers, batch_size):
    data = everything(rows, cache=tmp_path / "cache")
    keys = [(epoch, i) for epoch in range(2) for i in (3, 1, 7, 0, 2, 6, 5, 4)]
    loader = DataLoader(
        data,
        batch_size=batch_size,
        sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=init_worker,
        multiprocessing_context="fork" if workers else None,
    )
    batches = list(loader)
    wanted = collate([data[key] for key in keys])
    assert sum((batch["id"] for batch in batches), []) == wanted["id"]
    for name in ("image", "target", "valid"):
        assert torch.equal(torch.cat([batch[name] for batch in batches]), wanted[name])
    assert torch.equal(torch.cat([batch["aux"]["state"] for batch in batches]), wanted["aux"]["state"])
    first = batches[0]["image"]
    assert type(first) is torch.Tensor and first.shape == (batch_size, 2, 3, *SIZE) and first.is_contiguous()


def test_memory_of_a_worker_is_not_used_again_before_it_arrived(rows):
    data = dataset(rows, swap_prob=0.5)
    keys = [(epoch, i) for epoch in range(4) for i in range(8)]
    loader = DataLoader(
        data, sampler=keys, num_workers=1, prefetch_factor=4, collate_fn=collate, multiprocessing_context="fork"
    )
    batches = []
    for batch in loader:
        batches.append(batch)
        time.sleep(0.03)  # a model that trains, while the worker runs ahead
    assert all(torch.equal(b["image"][0], data[key]["image"]) for b, key in zip(batches, keys, strict=True))


def test_memory_is_given_back_when_it_arrived():
    pairs = [tuple(np.full((2, *SIZE, 3), k, np.uint8)) for k in range(3)]
    tables = stereo.normalising_tables(MEAN, STD)
    sent = [stereo.Unfinished([pair], tables, SIZE).__reduce__() for pair in pairs]
    try:
        assert len(stereo.SLOTS) == 3
        arrived = [finish(*arguments) for finish, arguments in sent]
        assert all(torch.equal(a, stereo.normalised([p], tables, SIZE)) for a, p in zip(arrived, pairs, strict=True))
        again = stereo.Unfinished(pairs[:1], tables, SIZE).__reduce__()[1][0]
        assert len(stereo.SLOTS) == 3 and again is stereo.SLOTS[0]
        stereo.Unfinished(pairs, tables, SIZE).__reduce__()  # larger: what lies idle makes room
        assert len(stereo.SLOTS) == 2
    finally:
        stereo.SLOTS.clear()


@pytest.mark.soak
def test_pickles_and_runs_in_a_spawned_worker(rows, tmp_path):
    data = everything(rows, cache=tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(data))
    assert all(same(copy[2, i], data[2, i]) for i in range(8))
    loader = DataLoader(
        data,
        batch_size=4,
        num_workers=1,
        collate_fn=collate,
        worker_init_fn=init_worker,
        multiprocessing_context="spawn",
    )
    assert all(torch.equal(b["image"], collate([data[i] for i in k])["image"]) for b, k in zip(loader, PARTS, strict=1))


PARTS = [range(4), range(4, 8)]


def test_workers_leave_the_cores_to_each_other():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        init_worker(0)
        assert cv2.getNumThreads() <= 1
    finally:
        cv2.setNumThreads(before)


def test_cache_gives_the_same_samples_and_decodes_once(rows, tmp_path, monkeypatch):
    plain = [dataset(rows)[i] for i in range(8)]
    first = dataset(rows, cache=tmp_path / "cache")
    assert all(same(first[i], plain[i]) for i in range(8))
    reads = []
    read = read_halves
    monkeypatch.setattr(stereo, "read_halves", lambda path, *a, **k: (reads.append(path), read(path, *a, **k))[1])
    part = rows.iloc[[6, 1]].reset_index(drop=True)  # the rows of a fold
    assert same(dataset(part, cache=tmp_path / "cache")[0], plain[6]) and not reads
    forced = dataset(part, cache=tmp_path / "cache", force_cache=True)
    assert len(reads) == 2 and same(forced[1], plain[1])


def test_cache_follows_content_size_and_settings(rows, tmp_path):
    cache = tmp_path / "cache"
    dataset(rows, cache=cache)
    stat = os.stat(rows["path"][0])
    Image.fromarray(photo(99)).save(rows["path"][0])
    os.utime(rows["path"][0], ns=(stat.st_atime_ns, stat.st_mtime_ns + 10))  # changed within a clock tick
    data = dataset(rows, cache=cache)
    assert np.abs(data[0]["image"].numpy() - expected(photo(99))).max() < 1e-5
    larger = dataset(rows, cache=cache, size=(20, 20))
    assert larger[0]["image"].shape == (2, 3, 20, 20) and same(dataset(rows, cache=cache)[1], dataset(rows)[1])
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2
    with pytest.raises(InputError, match="80x40"):
        dataset(rows, cache=cache, photo_size=(41, 80))


def test_version_and_stamp_are_part_of_the_key(rows, tmp_path, monkeypatch):
    folder = lambda **k: stereo.HalvesStore(tmp_path, SIZE, k.get("mask_stamp", False), PHOTO).folder  # noqa: E731
    first = folder()
    assert folder(mask_stamp=True) != first
    monkeypatch.setattr(stereo, "STORE_VERSION", stereo.STORE_VERSION + 1)
    assert folder() != first


def test_mask_stamp_reaches_the_picture(tmp_path):
    image = np.full((1000, 2000, 3), (60, 120, 50), np.uint8)
    cv2.putText(image, "2015/9/4", (1500, 960), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 140, 30), 4)
    Image.fromarray(image).save(tmp_path / "a.png")
    size = (500, 500)
    plain = read_halves(tmp_path / "a.png", size)
    masked = read_halves(tmp_path / "a.png", size, mask_stamp=True)
    far = [np.abs(half.astype(int) - (60, 120, 50)).max() for half in (plain[1], masked[1], plain[0], masked[0])]
    assert far[0] > 90 and far[1] <= 5 and far[2:] == [0, 0]
    rows = pd.DataFrame({"id": ["a"], "path": [str(tmp_path / "a.png")]})
    images = [
        dataset(rows, photo_size=None, size=size, mask_stamp=mask, cache=cache)[0]["image"]
        for mask in (False, True)
        for cache in (None, tmp_path / "cache")
    ]
    assert torch.equal(images[0], images[1]) and torch.equal(images[2], images[3])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("cached", [False, True])
def test_bad_photos_are_errors_or_marked(rows, tmp_path, cached):
    options = {"cache": tmp_path / "cache" if cached else None}
    data = (tmp_path / "photos" / "ID1.png").read_bytes()
    (tmp_path / "photos" / "ID1.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "photos" / "ID4.png").unlink()
    with pytest.raises(InputError, match=r"ID[14]\.png"):
        broken = dataset(rows, **options)
        [broken[i] for i in range(8)]
    marked = dataset(rows, on_bad="mark", **options)
    bad = [sample["bad"] for sample in (marked[i] for i in range(8))]
    assert bad == [False, True, False, False, True, False, False, False]
    assert not marked[1]["image"].any() and marked[1]["image"].shape == (2, 3, *SIZE)
    loader = DataLoader(marked, sampler=[1, 4, 0, 1, 2, 3], batch_size=2, num_workers=1, collate_fn=collate)
    batches = list(loader)
    assert [batch["bad"].tolist() for batch in batches] == [[True, True], [False, True], [False, False]]
    assert not batches[0]["image"].any() and not batches[1]["image"][1].any()
    assert torch.equal(batches[1]["image"][0], marked[0]["image"])


def test_a_bad_partner_is_not_mixed_in(rows, tmp_path):
    (tmp_path / "photos" / "ID1.png").unlink()
    pair = rows.iloc[[0, 1]].reset_index(drop=True)
    data = dataset(pair, on_bad="mark", mix=Mix(pair, seed=0, mixup_prob=1.0))
    assert torch.equal(data[0]["image"], dataset(rows)[0]["image"]) and data[0]["target"][0] == 0


def test_unknown_treatment_of_bad_photos(rows):
    with pytest.raises(ValueError, match="on_bad"):
        dataset(rows, on_bad="ignore")


@pytest.mark.data
def test_real_photos_with_the_whole_augmentation(biomass_data, tmp_path):
    paths = sorted((biomass_data / "train").glob("*.jpg"))[:4]
    rows = pd.DataFrame({"id": [p.stem for p in paths], "path": [str(p) for p in paths]})
    options = {"photo_size": (1000, 2000), "size": (252, 252), "augment": StereoAugment(seed=1), "swap_prob": 0.5}
    one, two = dataset(rows, **options), dataset(rows, cache=tmp_path, **options)
    assert all(same(one[1, i], two[1, i]) for i in range(4))
