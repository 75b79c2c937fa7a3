"""Task.validate: what lies in a folder can be handed in for the data, or the fault is named; the writers use the same.

Predictions are made by hand, so that nothing has to be trained.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import tiny_data
import tiny_landslide
import tiny_rts
import tiny_tiles
from rasterio.transform import from_origin

from common.errors import InputError
from common.tasks import TASKS

VALUES = {"glacier": (0, 85, 170, 255), "rts": (0, 1), "landslide": (0, 1, 2)}


def make_rts_test(folder: Path) -> Path:
    """Tiles of two regions without labels: all of them are to be predicted."""
    tiny_rts.make_rts(folder, regions=("Aklavik", "Banks"), splits=None)
    shutil.rmtree(folder / "labels")
    return folder


MAKERS = {"glacier": tiny_tiles.make_tiles, "rts": make_rts_test, "landslide": tiny_landslide.make_hills}


@pytest.fixture(params=list(VALUES))
def masks(request, tmp_path):
    """(task, data, folder whose masks/ the task wrote for the test rows)."""
    task, data = TASKS[request.param], MAKERS[request.param](tmp_path / "data")
    task.write(frame_of(task, task.read_test(data)), data, tmp_path / "out")
    return task, data, tmp_path / "out"


def frame_of(task, rows: pd.DataFrame) -> pd.DataFrame:
    """A set as post-processing leaves it: random classes in every pixel of every tile."""
    rng, values = np.random.default_rng(0), VALUES[task.name]
    classes = []
    for path in rows["path"]:
        with rasterio.open(path) as file:
            classes.append(rng.integers(0, len(values), file.shape).astype(np.uint8))
    return pd.DataFrame({"id": rows["id"], "mask": classes, "nodata": 0}).assign(values=[values] * len(rows))


def one_line(task, data: Path, folder: Path) -> str:
    with pytest.raises(InputError) as error:
        task.validate(data, folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_task_wrote_is_right(masks):
    task, data, out = masks
    assert len(list((out / "masks").iterdir())) == len(task.read_test(data)) >= 2
    task.validate(data, out)


def test_faults_of_masks_are_named(masks):
    task, data, out = masks
    first = sorted((out / "masks").iterdir())[0]
    kept, whole = out.parent / "kept.tif", first.read_bytes()
    first.rename(kept)
    assert f"lacks masks: {first.name}" in one_line(task, data, out)
    first.write_bytes(whole[: len(whole) // 2])
    assert str(first) in one_line(task, data, out)
    first.write_bytes(whole)
    shutil.copy(first, out / "masks" / "stranger.tif")
    assert "holds masks of no tile: stranger.tif" in one_line(task, data, out)
    (out / "masks" / "stranger.tif").unlink()
    task.validate(data, out)
    with rasterio.open(first, "r+") as file:
        file.write(np.full(file.shape, 84, np.uint8), 1)
    assert "holds values 84" in one_line(task, data, out)
    shutil.rmtree(out / "masks")
    assert "lacks masks" in one_line(task, data, out)


def test_masks_of_another_test_set_are_refused(masks):
    """The hidden test set has the same names at another place, or other names."""
    task, data, out = masks
    victim = Path(task.read_test(data)["path"].iloc[0])
    with rasterio.open(victim, "r+") as file:
        file.transform = from_origin(5, 5, 7, 7)
    assert "georeference" in one_line(task, data, out)
    if task.name == "glacier":  # whose tiles are five files
        for number in (1, 2, 3, 4, 5):
            (found,) = (data / "Test" / f"Band{number}").glob("*09_08.tif")
            found.rename(found.with_name(found.name.replace("09_08", "09_09")))
        assert "lacks masks: B2_B2_masked_09_09.tif" in one_line(task, data, out)
    else:
        victim.rename(victim.with_name("another.tif"))
        assert "lacks masks: another.tif" in one_line(task, data, out)


def test_fewer_classes_are_right_too(tmp_path):
    """Of two classes glacier masks hold 0 and 255, landslide masks 0 and 1."""
    for name, values in (("glacier", (0, 255)), ("landslide", (0, 1))):
        task, data = TASKS[name], MAKERS[name](tmp_path / name)
        frame = frame_of(task, task.read_test(data))
        frame["mask"], frame["values"] = [mask % 2 for mask in frame["mask"]], [values] * len(frame)
        task.write(frame, data, tmp_path / f"{name}-out")
        task.validate(data, tmp_path / f"{name}-out")


def test_a_folder_with_nothing_to_predict(tmp_path):
    data = tiny_tiles.make_tiles(tmp_path / "data")
    shutil.rmtree(data / "Test")
    assert "holds no tile to be predicted" in one_line(TASKS["glacier"], data, tmp_path)


@pytest.fixture
def among_others(tmp_path):
    """(task, data, rows, out): test tiles of the thaw slumps that lie with labels among those of training."""
    task, data = TASKS["rts"], tiny_rts.make_rts(tmp_path / "data")
    rows = task.read_rows(data, {"label_map": []})
    rows = rows[rows["region"] == "Firth"].reset_index(drop=True)
    assert not len(task.read_test(data)) and len(rows) == 4
    task.write(frame_of(task, rows), data, tmp_path / "out")
    return task, data, rows, tmp_path / "out"


def test_test_tiles_among_others_are_those_of_the_table(among_others):
    task, data, rows, out = among_others
    rows.assign(nodata=0)[["id", "nodata"]].to_csv(out / "pred.csv", index=False)
    task.validate(data, out)
    (out / "masks" / f"{rows['id'][1]}.tif").unlink()
    assert f"lacks masks: {rows['id'][1]}.tif" in one_line(task, data, out)
    pd.DataFrame({"id": ["nobody"], "nodata": [0]}).to_csv(out / "pred.csv", index=False)
    assert "has no tile nobody (1 of 1)" in one_line(task, data, out)


def test_without_the_table_they_are_those_of_the_masks_of_which_there_must_be_one(among_others):
    task, data, rows, out = among_others
    task.validate(data, out)
    shutil.copy(out / "masks" / f"{rows['id'][0]}.tif", out / "masks" / "stranger.tif")
    assert "holds masks of no tile: stranger.tif" in one_line(task, data, out)
    for path in (out / "masks").iterdir():
        path.unlink()
    assert "lacks masks" in one_line(task, data, out)


def test_a_table_does_not_excuse_masks_of_a_test_folder(tmp_path):
    """Where the test rows are a folder of their own, all of it is asked for, whatever was predicted."""
    task, data, out = TASKS["glacier"], tiny_tiles.make_tiles(tmp_path / "data"), tmp_path / "out"
    rows = task.read_test(data)
    task.write(frame_of(task, rows), data, out)
    rows[:1].assign(nodata=0)[["id", "nodata"]].to_csv(out / "pred.csv", index=False)
    (out / "masks" / Path(rows["path"].iloc[1]).name).unlink()
    assert "lacks masks" in one_line(task, data, out)


def test_a_submission_is_that_of_its_own_test_table(tmp_path):
    task, data, out = TASKS["biomass"], tiny_data.make_tiny(tmp_path / "data"), tmp_path / "out"
    rows = task.read_test(data)
    frame = rows[["id"]].assign(**dict.fromkeys(task.outputs, 1.0))
    assert task.write(frame, data, out) == out / "submission.csv"
    task.validate(data, out)
    table = pd.read_csv(out / "submission.csv")
    for changed, said in ((table[1:], "are missing"), (table[::-1], "keep its order"),
                          (pd.concat([table, table[:1]]), "more than once"),
                          (table.assign(target=np.nan), "not a finite number")):  # fmt: skip
        changed.to_csv(out / "submission.csv", index=False)
        assert said in one_line(task, data, out)
    table.to_csv(out / "submission.csv", index=False)
    other = tiny_data.make_tiny(tmp_path / "hidden", tests=5)
    assert "are missing" in one_line(task, other, out)
    (out / "submission.csv").unlink()
    assert "submission.csv" in one_line(task, data, out)


def test_the_writers_stop_at_what_is_not_right(tmp_path, masks):
    """A stranger's mask that lies in the folder would be handed in with ours."""
    task, data, out = masks
    shutil.copy(sorted((out / "masks").iterdir())[0], out / "masks" / "stranger.tif")
    with pytest.raises(InputError, match=r"masks of no tile: stranger\.tif"):
        task.write(frame_of(task, task.read_test(data)), data, out)
