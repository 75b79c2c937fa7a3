"""The demo set: the competition's format, honest facts, the same bytes for a seed, covers that can be seen."""

import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest

from common.datasets import demo_biomass, demo_grass
from common.datasets.demo_biomass import DENSITY, GROUPS, NOISE, OUTPUTS, POWER, TEST_GROUPS, make_demo
from common.errors import InputError
from common.metrics.regression import weighted_r2

COLUMNS = ["sample_id", "image_path", "Sampling_Date", "State", "Species", "Pre_GSHH_NDVI", "Height_Ave_cm"]
COVER = {"green": 0.5, "dead": 0.3, "clover": 0.2}
LOOK = demo_grass.draw_look(np.random.default_rng(5), "")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, photos=12, test_photos=3, seed=3)


def wide(folder):
    table = pd.read_csv(folder / "train.csv")
    return table.pivot_table(index="image_path", columns="target_name", values="target")[list(OUTPUTS)]


def test_tables_have_the_competitions_form(demo):
    folder, _ = demo
    train, test = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "test.csv")
    sample = pd.read_csv(folder / "sample_submission.csv")
    assert list(train) == [*COLUMNS, "target_name", "target"] and len(train) == 12 * 5
    assert list(test) == ["sample_id", "image_path", "target_name"] and len(test) == 3 * 5
    assert list(sample) == ["sample_id", "target"] and list(sample.sample_id) == list(test.sample_id)
    for table, split in ((train, "train"), (test, "test")):
        assert table.sample_id.is_unique
        for row in table.itertuples():
            name = re.fullmatch(rf"{split}/(ID\d{{10}})\.jpg", row.image_path)[1]
            assert row.sample_id == f"{name}__{row.target_name}"
    assert all(re.fullmatch(r"2015/[1-9]\d?/[1-9]\d?", date) for date in train.Sampling_Date)
    assert set(train.State) <= {"NSW", "Tas", "Vic", "WA"}


def test_photos_are_of_the_right_size_and_all_there(demo):
    folder, _ = demo
    for split, count in (("train", 12), ("test", 3)):
        files = sorted((folder / split).glob("*.jpg"))
        assert len(files) == count
        assert all(cv2.imread(str(file)).shape == (1000, 2000, 3) for file in files)


def test_identities_hold_exactly_and_wa_has_no_dead(demo):
    folder, _ = demo
    mass = wide(folder)
    np.testing.assert_allclose(mass.GDM_g, mass.Dry_Green_g + mass.Dry_Clover_g, atol=1e-9)
    np.testing.assert_allclose(mass.Dry_Total_g, mass.GDM_g + mass.Dry_Dead_g, atol=1e-9)
    table = pd.read_csv(folder / "train.csv")
    dead = table[(table.State == "WA") & (table.target_name == "Dry_Dead_g")].target
    assert len(dead) and (dead == 0).all()


def test_facts_are_what_the_definition_says(demo):
    folder, facts = demo
    assert facts == json.loads((folder / "demo.json").read_text())
    mass = wide(folder)
    ids = [path[6:-4] for path in mass.index]
    expected = []
    for name in ids:
        green, dead, clover = (DENSITY[k] * facts["cover"][name][k] ** POWER[k] for k in ("green", "dead", "clover"))
        expected.append([green, dead, clover, green + clover, green + clover + dead])
    assert facts["best"] == pytest.approx(weighted_r2(mass.to_numpy(), np.array(expected)), abs=1e-4)
    assert set(facts["test_truth"]) == {path[5:-4] for path in pd.read_csv(folder / "test.csv").image_path}


def test_test_photos_come_from_dates_of_their_own(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(demo_biomass, "draw_photo", lambda *_: (np.zeros((2, 4, 3), np.uint8), COVER))
    real = demo_biomass.draw_row

    def draw_row(plan, folder):
        seen.append((folder.name, plan["date"], plan["state"]))
        return real(plan, folder)

    monkeypatch.setattr(demo_biomass, "draw_row", draw_row)
    make_demo(tmp_path, photos=30, test_photos=6)
    train, test = ({row[1:] for row in seen if row[0] == split} for split in ("train", "test"))
    assert train and test and not train & test


def test_same_seed_same_bytes_other_seed_others(demo, tmp_path):
    folder, _ = demo
    for name, seed in (("same", 3), ("other", 4)):
        make_demo(tmp_path / name, photos=12, test_photos=3, seed=seed)
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    assert len(files) == 12 + 3 + 4
    assert all((folder / file).read_bytes() == (tmp_path / "same" / file).read_bytes() for file in files)
    assert (folder / "train.csv").read_bytes() != (tmp_path / "other" / "train.csv").read_bytes()


def test_noise_has_mean_one_and_the_stated_spread(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_biomass, "draw_photo", lambda *_: (np.zeros((2, 4, 3), np.uint8), COVER))
    plans = demo_biomass.plan_groups(0, 400, GROUPS, 0)
    rows = [demo_biomass.draw_row(plan, tmp_path) for plan in plans]
    ratio = np.array([row["masses"]["Dry_Green_g"] / row["expected"]["Dry_Green_g"] for row in rows])
    assert ratio.mean() == pytest.approx(1, abs=4 * NOISE / 20)
    assert ratio.std() == pytest.approx(NOISE, rel=0.15)


def test_plan_of_the_whole_set():
    plans = demo_biomass.plan_groups(0, 130, GROUPS, 0)
    groups = {(plan["date"], plan["state"]) for plan in plans}
    assert len(groups) == len(GROUPS) >= 20 and not groups & {group[:2] for group in TEST_GROUPS}
    assert len({plan["date"].split("/")[1] for plan in plans}) >= 8
    assert len({name for group in GROUPS for name in group[2]}) == 15
    loads = pd.DataFrame([plan["loads"] for plan in plans])
    assert 0.05 < (loads.dead == 0).mean() < 0.17 and 0.28 < (loads.clover == 0).mean() < 0.48
    assert len({plan["id"] for plan in plans}) == 130
    stamped = {(plan["date"], plan["state"]) for plan in plans if plan["look"].stamp}
    assert 0.15 < len(stamped) / len(groups) < 0.35


def test_absent_classes_have_no_cover_and_more_load_more_cover():
    def cover(**loads):
        return demo_grass.draw_photo(np.random.default_rng(0), {"green": 0, "dead": 0, "clover": 0} | loads, LOOK)[1]

    assert cover() == {"green": 0, "dead": 0, "clover": 0}
    for name in demo_grass.CLASSES:
        little, much = cover(**{name: 0.1}), cover(**{name: 0.8})
        assert 0.03 < little[name] < 0.2 < 0.35 < much[name] < 0.75
        assert all(little[other] == 0 for other in demo_grass.CLASSES if other != name)


def test_covers_count_what_is_drawn():
    look = demo_grass.Look(
        **{**vars(LOOK), "green": (0, 255, 0), "soil": (0, 0, 0), "gains": (1, 1, 1), "exposure": 1.0, "gamma": 1.0,
           "shade": 0.0, "grain": 0.0}
    )  # fmt: skip
    image, cover = demo_grass.draw_photo(np.random.default_rng(1), {"green": 0.5, "dead": 0, "clover": 0}, look)
    assert (image[..., 1] > 60).mean() == pytest.approx(cover["green"], abs=0.06)


def test_halves_overlap_but_are_not_the_same():
    loads = {"green": 0.3, "dead": 0.2, "clover": 0.1}
    image = demo_grass.draw_photo(np.random.default_rng(2), loads, LOOK)[0]
    left, right = (cv2.cvtColor(half, cv2.COLOR_RGB2GRAY).astype(float) for half in (image[:, :1000], image[:, 1000:]))

    def match(shift):
        return np.corrcoef(left[:, shift:1000].ravel(), right[:, : 1000 - shift].ravel())[0, 1]

    scores = [match(shift) for shift in range(0, 100, 2)]
    assert 10 <= 2 * int(np.argmax(scores)) <= 90 and 0.4 < max(scores) < 0.99 and scores[0] < max(scores) - 0.1


def test_bad_arguments_and_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="demo set"):
        make_demo(tmp_path, photos=2)
    monkeypatch.setattr(demo_biomass.cv2, "imwrite", lambda *_: False)
    with pytest.raises(InputError, match="could not be written"):
        make_demo(tmp_path, photos=3, test_photos=1)
