"""Sets of maps: what is counted is what is stored, and a set is read wherever its folder was moved."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix

from common.datasets.tiles import as_sample, collate
from common.engine.device import Machine
from common.engine.predict import of_one_size, predict
from common.engine.rows import make_loader
from common.errors import InputError
from common.metrics.segmentation import counts_of
from common.outputs.mask_sets import (
    MapKeeper,
    keep_maps,
    mean_sets,
    prob_paths,
    read_run,
    read_set,
    recounted,
    with_background,
    write_set,
)
from common.outputs.masks import read_beside, read_probs, write_probs
from common.tasks.segmentation import make_frame

CLASSES = 3
SPEC = {"outputs": ["ground", "ice", "water"]}
SIZES = [(12, 9), (8, 8), (9, 14), (8, 8), (5, 6)]
EMPTY = 3


class Tiles(torch.utils.data.Dataset):
    """Noise as images, classes at random, a fifth without data; one tile has none anywhere."""

    def __init__(self, labelled=True):
        self.labelled = labelled

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, key):
        index = key[1]
        rng = np.random.default_rng(index)
        size = SIZES[index]
        valid = rng.random(size) < (0 if index == EMPTY else 0.8)
        image = np.where(valid, rng.normal(size=(CLASSES, *size)), 0).astype(np.float32)
        target = np.where(valid, rng.integers(0, CLASSES, size), 0)
        return as_sample(image, valid, target.astype(np.uint8), f"t{index}") | {"bad": False, "labelled": self.labelled}


class Tilted(torch.nn.Module):
    """Its input, with a weight on every class: a model whose answer is known."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = torch.tensor(weights)[:, None, None]

    def forward(self, image):
        return image * self.weights


MODELS = [Tilted(1.0, 2.0, 3.0), Tilted(2.0, -1.0, 0.5)]


def softmax(model, outputs):
    return {"prob": outputs.softmax(dim=1)}


def run(keeper, *, models=MODELS, batch_size=3, labelled=True, rank=0, world=1) -> dict:
    settings = {"batch_size": batch_size, "seed": 0, "workers": 0}
    machine = Machine(torch.device("cpu"), None, rank=rank, world=world)
    loader = make_loader(Tiles(labelled), settings, machine, shuffle=False, collate=collate)
    return predict(models, loader, views=["identity"], device=torch.device("cpu"), to_pred=softmax, keep=keeper)


def frame_of(folder, rows=True, **more) -> pd.DataFrame:
    keeper = MapKeeper(CLASSES, folder)
    return make_frame(run(keeper, **more) | {"folder": folder, "keep": keeper}, SPEC, pd.DataFrame() if rows else None)


def known_probs(index: int, models=MODELS) -> np.ndarray:
    """float64 (K,H,W): the mean of the models' softmax, written out."""
    image = Tiles()[(0, index)]["image"].numpy().astype(np.float64)
    answers = []
    for model in models:
        raised = np.exp(image * model.weights.numpy())
        answers.append(raised / raised.sum(axis=0))
    return np.mean(answers, axis=0)


def test_maps_are_the_mean_of_the_models_cut_back_to_their_tile(tmp_path):
    """Three tiles of different sizes to a batch; a pixel without data is certain background."""
    frame = frame_of(tmp_path / "prob")
    assert list(frame["id"]) == [f"t{k}" for k in range(5)]
    for index, path in enumerate(frame["prob"]):
        prob, sample = read_probs(path, CLASSES), Tiles()[(0, index)]
        valid = sample["valid"].numpy()
        assert prob.shape == (CLASSES, *SIZES[index])
        np.testing.assert_allclose(prob[:, valid], known_probs(index)[:, valid], atol=6e-4)
        assert (prob[0, ~valid] == 1).all() and (prob[1:, ~valid] == 0).all()
        np.testing.assert_array_equal(read_beside(path, "valid"), valid)
        np.testing.assert_array_equal(read_beside(path, "target"), sample["target"])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_counts_are_those_of_scikit_learn_over_what_is_stored(tmp_path, batch_size):
    frame = frame_of(tmp_path / "prob", batch_size=batch_size)
    counts = counts_of(frame, CLASSES)
    for index, path in enumerate(frame["prob"]):
        sample, pred = Tiles()[(0, index)], read_probs(path).argmax(axis=0)
        valid = sample["valid"].numpy()
        truth = sample["target"].numpy()[valid]
        wanted = confusion_matrix(truth, pred[valid], labels=range(CLASSES)) if valid.any() else np.zeros((3, 3))
        np.testing.assert_array_equal(counts[index], wanted)
        assert frame["nodata"][index] == (~valid).sum() and not pred[~valid].any()
    assert counts.sum() + frame["nodata"].sum() == sum(height * width for height, width in SIZES)
    whole = counts_of(frame, CLASSES, nodata=True).sum(axis=0)
    every = [(Tiles()[(0, k)]["target"].numpy().ravel(), read_probs(p).argmax(0).ravel())
             for k, p in enumerate(frame["prob"])]  # fmt: skip
    truth, pred = (np.concatenate(part) for part in zip(*every, strict=True))
    np.testing.assert_array_equal(whole, confusion_matrix(truth, pred))  # as the platform counts: all pixels


def test_counts_alone_are_the_same_and_a_few_masks_are_kept_for_pictures(tmp_path, monkeypatch):
    stored, counted = frame_of(tmp_path / "prob"), frame_of(None)
    assert "prob" not in counted
    pd.testing.assert_frame_equal(counted, stored.drop(columns="prob"))
    assert stored.attrs["shown"] == {}
    shown = counted.attrs["shown"]
    assert list(shown) == [f"t{k}" for k in range(5)] and shown["t2"].dtype == np.uint8
    np.testing.assert_array_equal(shown["t2"], read_probs(stored["prob"][2]).argmax(axis=0))
    monkeypatch.setattr("common.outputs.mask_sets.SHOWN", 2)
    assert list(frame_of(None).attrs["shown"]) == ["t0", "t1"]


def test_a_tie_in_what_is_stored_is_counted_as_it_is_stored():
    prob = np.array([0.49999, 0.50001, 0.0])[:, None, None] * np.ones((1, 2, 2))
    half = with_background(prob, np.array([[True, True], [True, False]])).astype(np.float16)
    assert (half.argmax(axis=0) == 0).all() and half[:, 1, 1].tolist() == [1, 0, 0]
    sample = as_sample(np.zeros((3, 2, 2), np.float32), np.ones((2, 2), bool), np.ones((2, 2), np.uint8), "a")
    keeper = MapKeeper(CLASSES, None)
    batch = collate([sample | {"labelled": True}])
    kept = keeper(batch, {"prob": torch.tensor(prob, dtype=torch.float32)[None, None]})
    assert kept["counts"].tolist() == [[[[0, 0, 0], [4, 0, 0], [0, 0, 0]]]] and kept["nodata"].tolist() == [[0]]


def test_tiles_without_truth_have_maps_and_no_counts(tmp_path):
    frame = frame_of(tmp_path / "prob", rows=False, labelled=False)
    assert list(frame.columns) == ["id", "nodata", "prob"]
    assert read_beside(frame["prob"][0], "valid").shape == SIZES[0]
    with pytest.raises(InputError, match="no array target"):
        read_beside(frame["prob"][0], "target")


def test_no_oof_keeps_counts_only(tmp_path):
    assert keep_maps(SPEC, {"oof": False}, tmp_path).folder is None
    assert keep_maps(SPEC, {"oof": True}, tmp_path).folder == tmp_path == keep_maps(SPEC, {}, tmp_path).folder


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_count_and_keep_each_tile_as_one_does(tmp_path, world):
    """Five tiles in batches of two: the last leaves all processes but the first without a tile of their own."""
    alone = frame_of(tmp_path / "alone", batch_size=2)
    parts = [run(MapKeeper(CLASSES, tmp_path / "prob"), batch_size=2, rank=rank, world=world) for rank in range(world)]
    ids = [name for part in parts for name in part["id"]]
    assert set(ids) == set(alone["id"]) and len(ids) > len(set(ids)), "some were predicted twice"
    for part in parts:
        for place, name in enumerate(part["id"]):
            line = alone.set_index("id").loc[name]
            assert part["nodata"][0, place] == line["nodata"]
            np.testing.assert_array_equal(part["counts"][0, place], counts_of(line.to_frame().T, CLASSES)[0])
    for name, path in zip(alone["id"], alone["prob"], strict=True):
        for key in ("prob", "valid", "target"):
            np.testing.assert_array_equal(read_beside(tmp_path / "prob" / f"{name}.npz", key), read_beside(path, key))


# sets in files


@pytest.mark.parametrize("kind, rows", [("oof", True), ("pred", False)])
def test_a_set_is_read_as_it_was_and_moves_with_its_folder(tmp_path, monkeypatch, kind, rows):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    frame = frame_of("run/prob", rows=rows, labelled=rows).assign(id=[f"0{k}" for k in range(5)])
    path = write_set("run", kind, frame.assign(mask=1, values=2))
    assert "mask" not in path.read_text() and "run/prob" not in path.read_text()
    for name in ("run", path):
        back = read_set(name)
        pd.testing.assert_frame_equal(back.drop(columns="prob"), frame.drop(columns="prob"))
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    moved = read_set(tmp_path / "elsewhere")
    for index, place in enumerate(prob_paths("elsewhere", moved)):
        assert read_probs(place).shape == (CLASSES, *SIZES[index])
    pd.testing.assert_frame_equal(moved.drop(columns="prob"), frame.drop(columns="prob"))


@pytest.mark.parametrize("text, said", [
    ("", "cannot be read as a table"), ("id,fold\na,0\n", "not the table of a set"), ("id,nodata\n", "not the table"),
    ("id,nodata\na,1\na,2\n", "each id once"),
])  # fmt: skip
def test_a_table_that_is_no_set_is_named(tmp_path, text, said):
    with pytest.raises(InputError, match="neither oof_counts.csv nor pred.csv"):
        read_set(tmp_path)
    (tmp_path / "pred.csv").write_text(text)
    with pytest.raises(InputError, match=f"pred.csv: .*{said}"):
        read_set(tmp_path)


def test_a_run_is_all_its_folds(tmp_path):
    with pytest.raises(InputError, match="train a fold of this run first"):
        read_run(tmp_path)
    frame = frame_of(tmp_path / "prob")
    for fold, part in enumerate((frame.iloc[:2], frame.iloc[2:])):
        (tmp_path / f"fold{fold}").mkdir()
        write_set(tmp_path / f"fold{fold}", "oof", part.assign(fold=fold))
    back = read_run(tmp_path)
    assert list(back["fold"]) == [0, 0, 1, 1, 1] and list(back["id"]) == list(frame["id"])
    np.testing.assert_array_equal(counts_of(back, CLASSES), counts_of(frame, CLASSES))


def test_the_mean_of_sets_has_mean_maps_and_counts_of_its_own(tmp_path):
    """The second set has its tiles in another order: they are matched by id."""
    sets = {name: frame_of(tmp_path / name, models=[model]) for name, model in zip("ab", MODELS, strict=True)}
    sets["b"] = sets["b"].iloc[::-1].reset_index(drop=True)
    mean = mean_sets(sets, tmp_path / "mean")
    assert list(mean["id"]) == [f"t{k}" for k in range(5)]
    wanted = frame_of(tmp_path / "both")
    for index, path in enumerate(mean["prob"]):
        assert path == str(tmp_path / "mean" / f"t{index}.npz")
        np.testing.assert_allclose(read_probs(path), read_probs(wanted["prob"][index]), atol=1e-3)
        valid = Tiles()[(0, index)]["valid"].numpy()
        np.testing.assert_array_equal(read_beside(path, "valid"), valid)
        pred, truth = read_probs(path).argmax(axis=0)[valid], Tiles()[(0, index)]["target"].numpy()[valid]
        if valid.any():
            counts = counts_of(mean.iloc[[index]], CLASSES)[0]
            np.testing.assert_array_equal(counts, confusion_matrix(truth, pred, labels=range(CLASSES)))
    alone = counts_of(sets["a"], CLASSES)
    assert (counts_of(mean, CLASSES) != alone).any(), "counts of the first set would be wrong"
    assert sets["a"]["prob"][0] == str(tmp_path / "a" / "t0.npz"), "the sets themselves stay as they are"


def test_one_set_alone_is_given_back_and_sets_of_test_tiles_have_no_counts(tmp_path):
    sets = {name: frame_of(tmp_path / name, rows=False, labelled=False, models=[model])
            for name, model in zip("ab", MODELS, strict=True)}  # fmt: skip
    assert mean_sets({"a": sets["a"]}, tmp_path / "mean") is sets["a"] and not (tmp_path / "mean").exists()
    mean = mean_sets(sets, tmp_path / "mean")
    assert list(mean.columns) == ["id", "nodata", "prob"]
    assert read_beside(mean["prob"][1], "valid").shape == SIZES[1]
    with pytest.raises(InputError, match="^b: holds counts only.*--no-oof"):
        mean_sets({"a": sets["a"], "b": frame_of(None)}, tmp_path / "mean")
    for one, other in ((sets["a"], sets["b"].iloc[1:]), (sets["a"].iloc[1:], sets["b"])):
        with pytest.raises(InputError, match="b: a and it do not both have t0; predict the same rows"):
            mean_sets({"a": one, "b": other}, tmp_path / "mean")


def test_counts_follow_the_maps(tmp_path):
    frame = frame_of(tmp_path / "prob")
    prob, valid, target = (read_beside(frame["prob"][0], key) for key in ("prob", "valid", "target"))
    write_probs(frame["prob"][0], np.roll(prob, 1, axis=0), valid=valid, target=target)
    again = recounted(frame, CLASSES)
    before, after = counts_of(frame, CLASSES), counts_of(again, CLASSES)
    np.testing.assert_array_equal(after[0], np.roll(before[0], 1, axis=1))
    np.testing.assert_array_equal(after[1:], before[1:])


def test_a_batch_in_small_parts_is_the_same_set():
    """Parts of at most so many pixels, one map at least; nothing is lost, doubled or out of its order."""
    batch = collate([Tiles()[(0, index)] for index in range(len(SIZES))])
    for most in (1, 100, 700, 10**9, None):
        parts = list(of_one_size(batch, most))
        assert [name for part in parts for name in part["id"]] == batch["id"]
        for part in parts:
            height, width = part["size"][0]
            assert set(part["size"]) == {(height, width)} and part["image"].shape[-2:] == (height, width)
            assert most is None or len(part["id"]) == 1 or len(part["id"]) * height * width <= most
            for row, name in enumerate(part["id"]):
                sample = Tiles()[(0, batch["id"].index(name))]
                assert all(torch.equal(part[key][row], sample[key]) for key in ("image", "target", "valid", "data"))
