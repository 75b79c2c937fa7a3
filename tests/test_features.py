import json

import numpy as np
import pandas as pd
import pytest
import torch

from common.datasets.draws import MIX, SWAP, generator
from common.datasets.mixing import Mix
from common.engine.tta import apply_view
from common.errors import InputError
from common.models.features import VIEW, FeatureDataset, FeatureStore, embed_rows

OUTPUTS = ("a", "b", "c")


class Photos:
    """Images that tell their row and, where augmented, their epoch."""

    def __init__(self, count: int, augmented: bool):
        self.count, self.augmented, self.read = count, augmented, 0

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        self.read += 1
        epoch, index = key
        image = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6) / 50 + index
        return {"image": image * (1 + 0.1 * epoch) if self.augmented else image, "id": f"r{index}"}


class Cells(torch.nn.Module):
    """Stands in for the stereo model: 2 x 3 cells of 2 x 2 pixels, dropout to tell training from evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Linear(12, 5)
        self.drop = torch.nn.Dropout(0.5)

    def embed(self, image):
        cells = image.reshape(len(image), 2, 3, 2, 2, 3, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return self.drop(self.weight(cells.reshape(len(image), 2, 6, 12)))


def build(tmp_path, count=7, views=3, model=None, **changes):
    plain, augmented = Photos(count, False), Photos(count, True)
    ids = [f"r{k}" for k in range(count)]
    settings = {"views": views, "batch_size": 4, "inputs": {"backbone": "x"}, **changes}
    store = embed_rows(model or Cells(), plain, augmented=augmented, ids=ids, root=tmp_path, **settings)
    return store, plain, augmented


def make_rows(count=7):
    rng = np.random.default_rng(1)
    masses = rng.gamma(2, 10, (count, 3)).astype(np.float32)
    rows = pd.DataFrame(masses, columns=list(OUTPUTS))
    rows.insert(0, "id", [f"r{k}" for k in range(count)])
    rows["month"] = np.arange(count) % 2
    return rows


def test_store_holds_what_the_model_gives_photo_by_photo(tmp_path):
    model = Cells().train()
    store, plain, augmented = build(tmp_path, model=model)
    assert store.features.shape == (7, 3, 2, 6, 5) and store.features.dtype == np.float32
    assert model.training, "the model must be given back in the mode it came in"
    model.eval()
    for index in (0, 3, 6):
        for view in range(3):
            image = (plain if view == 0 else augmented)[(view, index)]["image"]
            expected = model.embed(image[None])[0].detach()
            np.testing.assert_allclose(store.features[index, view], expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(store.features[:, 1], store.features[:, 2])


def test_store_is_built_once_and_again_when_an_input_changes(tmp_path):
    store, plain, _ = build(tmp_path)
    assert plain.read == 7
    again, plain, augmented = build(tmp_path)
    assert (plain.read, augmented.read) == (0, 0) and again.folder == store.folder
    for changes in ({"inputs": {"backbone": "y"}}, {"views": 2}, {"dtype": "float16"}, {"count": 6}):
        other, plain, _ = build(tmp_path, **changes)
        assert other.folder != store.folder and plain.read == len(other.ids), changes
    _, plain, _ = build(tmp_path, force=True)
    assert plain.read == 7


def test_half_precision_is_close_and_half_the_size(tmp_path):
    whole, _, _ = build(tmp_path)
    half, _, _ = build(tmp_path, dtype="float16")
    assert half.features.nbytes * 2 == whole.features.nbytes
    np.testing.assert_allclose(half.features, whole.features, rtol=1e-3, atol=1e-4)


def test_store_that_fails_leaves_nothing(tmp_path):
    model = Cells()
    with torch.no_grad():
        model.weight.bias[2] = torch.inf
    with pytest.raises(InputError, match="r0"):
        build(tmp_path, model=model)
    assert [path for path in tmp_path.rglob("*") if path.is_dir()] == []
    with torch.no_grad():
        model.weight.bias[2] = 1e6
    with pytest.raises(InputError, match="float16"):
        build(tmp_path, model=model, dtype="float16")
    assert build(tmp_path, model=model)[0].features.max() > 9e5


@pytest.mark.parametrize("changes", [{"dtype": "int8"}, {"views": 0}])
def test_bad_settings_are_refused(tmp_path, changes):
    with pytest.raises(InputError):
        build(tmp_path, **changes)
    with pytest.raises(InputError, match="3 stored views"):
        embed_rows(Cells(), Photos(2, False), ids=["a", "b"], root=tmp_path, inputs={}, views=3)


def slow_sample(store, rows, epoch, index, *, seed, swap_prob, mix, aux):
    """The plain way, a row at a time: view, swap, then the mix that the photo dataset would make."""

    def image(i):
        view = int(generator(seed, epoch, i, VIEW).integers(store.features.shape[1]))
        halves = torch.tensor(np.array(store.features[store.ids.index(rows["id"][i]), view]))
        swapped = generator(seed, epoch, i, SWAP).random() < swap_prob
        return apply_view("swap", halves[None])[0] if swapped else halves

    target = rows.loc[index, list(OUTPUTS)].to_numpy(np.float64)
    label, found = aux[index], image(index)
    draws = generator(seed, epoch, index, MIX)
    pool = mix.pools[index]
    if draws.random() < mix.mixup_prob and len(pool) > 1:
        place = int(draws.integers(len(pool) - 1))
        partner = [i for i in pool if i != index][place]
        weight = float(draws.beta(mix.mixup_alpha, mix.mixup_alpha))
        found = weight * found + (1 - weight) * image(partner)
        target = weight * target + (1 - weight) * rows.loc[partner, list(OUTPUTS)].to_numpy(np.float64)
        label = weight * label + (1 - weight) * aux[partner]
    return found, target, label


def test_training_batches_equal_the_plain_way(tmp_path):
    store, _, _ = build(tmp_path)
    rows = make_rows().iloc[[5, 0, 3, 6, 1, 2]].reset_index(drop=True)
    aux = np.eye(6, 4, dtype=np.float32) + 0.1
    mix = Mix(rows, seed=5, mixup_prob=0.7, within=["month"])
    dataset = FeatureDataset(store, rows, outputs=OUTPUTS, train=True, seed=5, mix=mix, aux={"state": aux})
    mixed = 0
    for epoch in range(4):
        batch = dataset.get_batch(epoch, [4, 0, 2, 5])
        for k, index in enumerate([4, 0, 2, 5]):
            settings = {"seed": 5, "swap_prob": 0.5, "mix": mix, "aux": aux}
            image, target, label = slow_sample(store, rows, epoch, index, **settings)
            torch.testing.assert_close(batch["image"][k], image, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(batch["target"][k], target, rtol=1e-5)
            np.testing.assert_allclose(batch["aux"]["state"][k], label, rtol=1e-5)
            assert batch["id"][k] == rows["id"][index]
            mixed += not np.allclose(target, rows.loc[index, list(OUTPUTS)].to_numpy(np.float64))
            single = dataset[(epoch, index)]
            assert torch.equal(single["image"], batch["image"][k]) and single["id"] == batch["id"][k]
            assert torch.equal(single["target"], batch["target"][k])
            assert torch.equal(single["aux"]["state"], batch["aux"]["state"][k])
    assert 4 <= mixed <= 15
    assert np.array_equal(dataset.target, rows[list(OUTPUTS)].to_numpy(np.float32)), "mixing must not touch the table"


def test_draws_cover_views_and_both_orders_and_repeat(tmp_path):
    store, _, _ = build(tmp_path)
    dataset = FeatureDataset(store, make_rows(), outputs=OUTPUTS, train=True, seed=2)
    seen = set()
    for epoch in range(60):
        batch = dataset.get_batch(epoch, range(7))
        assert torch.equal(batch["image"], dataset.get_batch(epoch, range(7))["image"])
        for k in range(7):
            options = [(v, s) for v in range(3) for s in (0, 1)]
            flips = [store.features[k, v, ::-1] if s else store.features[k, v] for v, s in options]
            matches = [o for o, f in zip(options, flips, strict=True) if np.array_equal(f, batch["image"][k])]
            seen.add((k, *matches[0]))
    assert len(seen) == 7 * 3 * 2


def test_validation_gives_the_plain_photo(tmp_path):
    store, _, _ = build(tmp_path)
    dataset = FeatureDataset(store, make_rows(), outputs=OUTPUTS)
    for epoch in range(5):
        batch = dataset.get_batch(epoch, [6, 1, 0])
        assert np.array_equal(batch["image"], store.features[[6, 1, 0], 0])
    assert "aux" not in batch and batch["valid"].all()


def test_missing_targets_are_not_valid_and_spoil_their_mixes(tmp_path):
    store, _, _ = build(tmp_path)
    rows = make_rows()
    rows.loc[2, "b"] = np.nan
    mix = Mix(rows, seed=0, mixup_prob=1.0)
    dataset = FeatureDataset(store, rows, outputs=OUTPUTS, train=True, mix=mix)
    spoilt = 0
    for epoch in range(10):
        batch = dataset.get_batch(epoch, range(7))
        assert torch.isfinite(batch["target"]).all()
        for k in range(7):
            partner = mix.plan(epoch, k, (1, 1)).partner
            assert batch["valid"][k].tolist() == [True, 2 not in (k, partner), True]
            spoilt += partner == 2
    assert spoilt > 0


def test_test_rows_have_no_valid_target(tmp_path):
    store, _, _ = build(tmp_path)
    dataset = FeatureDataset(store, make_rows()[["id"]], outputs=OUTPUTS)
    assert len(dataset) == 7 and not dataset[0]["valid"].any()


def test_unknown_row_and_cutmix_are_refused(tmp_path):
    store, _, _ = build(tmp_path)
    rows = make_rows()
    with pytest.raises(InputError, match="cutmix"):
        FeatureDataset(store, rows, outputs=OUTPUTS, train=True, mix=Mix(rows, seed=0, cutmix_prob=0.5))
    rows["id"] = [*rows["id"][:6], "stranger"]
    with pytest.raises(InputError, match="stranger"):
        FeatureDataset(store, rows, outputs=OUTPUTS)


def test_store_knows_its_ids(tmp_path):
    store, _, _ = build(tmp_path)
    assert json.loads((store.folder / "ids.json").read_text()) == list(store.ids)
    assert store.positions(["r4", "r0"]).tolist() == [4, 0]
    assert isinstance(store, FeatureStore) and isinstance(store.features, np.memmap)
