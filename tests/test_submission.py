import numpy as np
import pandas as pd
import pytest
from published import OUTPUTS

from common.errors import InputError
from common.outputs.submission import read_test_table, validate_submission, write_submission

IDS = ["ID3", "ID1", "ID__2"]


@pytest.fixture
def test_csv(tmp_path):
    """Rows in an order of their own, as the hidden test may have them."""
    rows = [(f"{one}__{name}", f"test/{one}.jpg", name) for one in IDS for name in OUTPUTS]
    order = np.random.default_rng(0).permutation(len(rows))
    frame = pd.DataFrame([rows[i] for i in order], columns=["sample_id", "image_path", "target_name"])
    frame.to_csv(tmp_path / "test.csv", index=False)
    return tmp_path / "test.csv"


@pytest.fixture
def pred():
    values = np.random.default_rng(1).random((4, 5)) * 50
    return pd.DataFrame(values, columns=OUTPUTS).assign(id=[*IDS[::-1], "ID9"])


def test_every_value_lands_on_its_sample(test_csv, pred, tmp_path):
    path = write_submission(tmp_path / "out" / "submission.csv", pred, test_csv)
    got, asked = pd.read_csv(path), pd.read_csv(test_csv)
    assert list(got) == ["sample_id", "target"] and got["sample_id"].tolist() == asked["sample_id"].tolist()
    for sample, target in got.itertuples(index=False):
        one, name = sample.rsplit("__", 1)
        assert target == pred.set_index("id").loc[one, name]
    assert validate_submission(path, test_csv) == 15
    table = read_test_table(test_csv)
    assert list(table) == ["sample_id", "id", "target_name"] and set(table["id"]) == set(IDS)


def test_what_cannot_be_written_leaves_the_old_file(test_csv, pred, tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    broken = pred.copy()
    broken.loc[0, "GDM_g"] = np.nan
    cases = {
        "no prediction for ID1": pred[pred["id"] != "ID1"],
        "not finite for ID__2__GDM_g": broken,
        "hold an id twice: ID3": pd.concat([pred, pred[2:3]]),
        "not predicted: Dry_Dead_g": pred.drop(columns="Dry_Dead_g"),
    }
    for message, frame in cases.items():
        with pytest.raises(InputError, match=message) as error:
            write_submission(path, frame, test_csv)
        assert "\n" not in str(error.value) and path.read_text() == "old"


def swap_rows(frame):
    return frame.iloc[[1, 0, *range(2, len(frame))]]


BAD = {
    "columns are sample_id, target, id": lambda f: f.assign(id=1),
    "columns are target, sample_id": lambda f: f[["target", "sample_id"]],
    "holds no rows": lambda f: f[:0],
    "more than once": lambda f: pd.concat([f, f[:1]]),
    "are missing": lambda f: f[:-1],
    "are not in": lambda f: pd.concat([f, pd.DataFrame({"sample_id": ["ID9__GDM_g"], "target": [1.0]})]),
    "line 2 is .* keep its order": swap_rows,
    "not a finite number": lambda f: f.assign(target=f["target"].where(f.index != 3)),
    "not a finite number for": lambda f: f.assign(target=f["target"].where(f.index != 3, np.inf)),
}


@pytest.mark.parametrize("message", BAD)
def test_wrong_submissions_are_refused(message, test_csv, pred, tmp_path):
    path = write_submission(tmp_path / "submission.csv", pred, test_csv)
    BAD[message](pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InputError, match=message) as error:
        validate_submission(path, test_csv)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_wrong_test_tables_are_refused(tmp_path):
    path = tmp_path / "test.csv"
    cases = {
        "no column sample_id": "id,target_name\nID1,GDM_g\n",
        "holds no rows": "sample_id,target_name\n",
        "is not <id>__<target>: ID1": "sample_id,target_name\nID1,GDM_g\n",
        "more than once: ID1__GDM_g": "sample_id,target_name\nID1__GDM_g,GDM_g\nID1__GDM_g,GDM_g\n",
        "disagrees with sample_id: ID1__GDM_g": "sample_id,target_name\nID1__GDM_g,Dry_Dead_g\n",
    }
    for message, text in cases.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message) as error:
            read_test_table(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    path.write_text("sample_id\nID1__GDM_g\n")
    assert read_test_table(path).iloc[0].tolist() == ["ID1__GDM_g", "ID1", "GDM_g"]


@pytest.mark.data
def test_the_competitions_sample_is_valid(biomass_data, tmp_path):
    assert validate_submission(biomass_data / "sample_submission.csv", biomass_data / "test.csv") == 5
    pred = pd.DataFrame({"id": ["ID1001187975"], **{name: [1.5] for name in OUTPUTS}})
    path = write_submission(tmp_path / "s.csv", pred, biomass_data / "test.csv")
    assert validate_submission(path, biomass_data / "test.csv") == 5
