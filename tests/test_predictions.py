import numpy as np
import pandas as pd
import pytest
from published import OUTPUTS, load_published

from common.errors import InputError
from common.outputs.predictions import align, read_predictions, read_run, truth_for, write_predictions


def make_frame(count=6, seed=0, fold=True):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"ID{1000 + i}" for i in range(count)]})
    if fold:
        frame["fold"] = np.arange(count) % 3
    return frame.assign(**{name: rng.normal(20, 15, count) for name in OUTPUTS})


def test_round_trip_is_exact_and_in_order(tmp_path):
    frame = make_frame()
    for name in OUTPUTS:
        frame[f"{name}_hi"], frame[f"{name}_lo"], frame[f"true_{name}"] = frame[name] + 3, frame[name] - 3, 1 / 3
    frame.loc[2, "true_Dry_Dead_g"] = np.nan
    frame["note"] = "not kept"
    frame["id"] = [f"00{i}" for i in range(6)]
    path = write_predictions(tmp_path / "new" / "oof.csv", frame[frame.columns[::-1]], OUTPUTS)
    back = read_predictions(path, OUTPUTS)
    bounds = [f"{name}_{side}" for name in OUTPUTS for side in ("lo", "hi")]
    order = ["id", "fold", *OUTPUTS, *bounds, *(f"true_{name}" for name in OUTPUTS)]
    assert list(back) == order == path.read_text().splitlines()[0].split(",")
    pd.testing.assert_frame_equal(back, frame[order], check_exact=True, check_dtype=False)
    assert back["fold"].dtype.kind == "i" and back["id"].tolist() == frame["id"].tolist()
    assert [p.name for p in path.parent.iterdir()] == ["oof.csv"]


def test_float32_comes_back_within_a_millionth(tmp_path):
    frame = make_frame().astype(dict.fromkeys(OUTPUTS, np.float32))
    back = read_predictions(write_predictions(tmp_path / "oof.csv", frame, OUTPUTS), OUTPUTS)
    assert np.array_equal(back[OUTPUTS].to_numpy(), frame[OUTPUTS].to_numpy(np.float64))


def test_strangers_file_and_folder_and_run(tmp_path):
    frame = make_frame(fold=False)
    text = frame.assign(model="x").to_csv(index=False)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "pred.csv").write_text("\ufeff" + text, encoding="utf-8")
    back = read_predictions(tmp_path / "set", OUTPUTS)
    assert list(back) == ["id", *OUTPUTS] and np.allclose(back[OUTPUTS], frame[OUTPUTS], rtol=1e-12)
    folds = make_frame()
    for fold in range(3):
        write_predictions(tmp_path / "run" / f"fold{fold}" / "oof.csv", folds[folds["fold"] == fold], OUTPUTS)
    whole = read_run(tmp_path / "run", OUTPUTS).sort_values("id", ignore_index=True)
    pd.testing.assert_frame_equal(whole, folds, check_dtype=False)
    write_predictions(tmp_path / "run" / "fold3" / "oof.csv", folds[:1], OUTPUTS)
    with pytest.raises(InputError, match="run: ids occur more than once: ID1000"):
        read_run(tmp_path / "run", OUTPUTS)
    with pytest.raises(InputError, match="no fold"):
        read_run(tmp_path / "set", OUTPUTS)


BAD = {
    "no column Dry_Dead_g": lambda f: f.drop(columns="Dry_Dead_g"),
    "no column id": lambda f: f.rename(columns={"id": "ID"}),
    "holds no rows": lambda f: f[:0],
    "more than once: ID1000": lambda f: pd.concat([f, f[:1]]),
    "GDM_g is not a finite number for ID1001": lambda f: f.assign(GDM_g=[1, np.inf, 1, 1, 1, 1]),
    "Dry_Total_g is not a finite number for ID1005": lambda f: f.assign(Dry_Total_g=[1, 1, 1, 1, 1, np.nan]),
    "Dry_Green_g is not a finite number for ID1000, ID1001, ID1002, ID1003, ID1004, ...": lambda f: f.assign(
        Dry_Green_g="many"
    ),
    "fold is not a finite number": lambda f: f.assign(fold=0.5),
    "no id": lambda f: f.assign(id=[None, "a", "b", "c", "d", "e"]),
    "GDM_g_lo is not": lambda f: f.assign(GDM_g_lo=np.nan),
    "true_GDM_g is not": lambda f: f.assign(true_GDM_g="?"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_sets_are_refused_by_reader_and_writer(message, tmp_path):
    frame = BAD[message](make_frame())
    path = tmp_path / "bad.csv"
    with pytest.raises(InputError, match=message):
        write_predictions(path, frame, OUTPUTS)
    assert not path.exists()
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=message) as error:
        read_predictions(path, OUTPUTS)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_files_that_are_no_csv(tmp_path):
    for name, content in {
        "empty.csv": b"",
        "image.csv": b"\xff\xd8\xff\x00\x89",
        "ragged.csv": b"id,a\n1,2,3\n1\n1,2,3,4",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as error:
            read_predictions(tmp_path / name, OUTPUTS)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        read_predictions(tmp_path / "absent.csv", OUTPUTS)


def test_align_orders_by_id():
    one, two = make_frame(seed=1), make_frame(seed=2)
    ids, preds = align({"one": one, "two": two.sample(frac=1, random_state=0)}, OUTPUTS)
    assert ids == one["id"].tolist() and preds.shape == (2, 6, 5)
    assert np.array_equal(preds, np.stack([one[OUTPUTS], two[OUTPUTS]]))
    ids, preds = align({"two": two}, OUTPUTS, ["ID1004", "ID1001"])
    assert np.array_equal(preds[0], two.iloc[[4, 1]][OUTPUTS])
    cases = {
        "two: lacks 1 ids that one has: ID1000": lambda: align({"one": one, "two": two[1:]}, OUTPUTS),
        "two: has ids that one lacks: ID1000": lambda: align({"one": one[1:], "two": two}, OUTPUTS),
        "one: lacks 1 ids that are wanted: ID7": lambda: align({"one": one}, OUTPUTS, ["ID7", "ID1001"]),
        "no prediction sets": lambda: align({}, OUTPUTS),
    }
    for message, call in cases.items():
        with pytest.raises(InputError, match=message):
            call()


def test_truth_from_the_set_or_from_the_rows():
    frame = make_frame()
    rows = frame[["id"]].assign(**{name: 10.0 * i + np.arange(6) for i, name in enumerate(OUTPUTS)})[::-1]
    from_rows = truth_for(frame, OUTPUTS, rows)
    assert np.array_equal(from_rows, 10.0 * np.arange(5) + np.arange(6)[:, None])
    own = frame.assign(**{f"true_{name}": from_rows[:, i] + 1 for i, name in enumerate(OUTPUTS)})
    assert np.array_equal(truth_for(own, OUTPUTS), from_rows + 1)
    assert np.array_equal(truth_for(own, OUTPUTS, rows), from_rows)
    with pytest.raises(InputError, match="--truth"):
        truth_for(frame, OUTPUTS)
    with pytest.raises(InputError, match="lacks ids of the predictions: ID1003"):
        truth_for(frame, OUTPUTS, rows[rows["id"] != "ID1003"])


@pytest.mark.data
def test_published_files_are_read_and_aligned(biomass_data):
    ids, _, preds, _ = load_published(biomass_data)
    sets = {path.stem: read_predictions(path, OUTPUTS) for path in sorted((biomass_data / "oof").glob("*.csv"))}
    got, stack = align(sets, OUTPUTS, ids)
    assert got == ids and np.array_equal(stack, np.array(list(preds.values())))
