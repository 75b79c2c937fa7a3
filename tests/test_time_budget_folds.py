"""--time-budget where folds take turns, where predictions are maps, with a shared backbone, and of two processes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import moon_task
import numpy as np
import pandas as pd
import pytest
import tiny_data
import tiny_tiles
from children import free_port
from ticking import HOUR, tick
from torch import nn

from common.engine.predict import passes
from common.outputs.masks import read_probs
from common.tasks import TASKS

GLACIER = TASKS["glacier"]
PASS = 300
ROWS = 20
# folds that do not read rows alike are predicted one after the other
IN_TURN = replace(moon_task.TASK, reads=lambda spec: {"median": spec["median"]}, bad_answer="the medians")
GIVEN = ("--task", "moon", "--data", "data", "--workers", "0", "--device-type", "cpu")


@pytest.fixture(scope="module")
def moon(tmp_path_factory) -> Path:
    """A working folder with a run of four folds, and 20 tiles to be predicted."""
    home = tmp_path_factory.mktemp("moon")
    moon_task.make_demo(home / "data", tests=ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "moon", moon_task.TASK)
        assert tiny_data.call("train", *GIVEN, "--epochs", "3", "--run", "r", cwd=home) == 0
    return home


def infer(home, *words, out, code=0) -> pd.DataFrame:
    words = (*GIVEN, "--runs", "r", "--batch-size", "1", "--out", out, *words)
    assert tiny_data.call("infer", *words, cwd=home) == code
    found = pd.read_csv(home / out / "pred.csv").set_index("id")
    assert list(found.index) == [f"t{k}" for k in range(40, 40 + ROWS)]
    assert list(pd.read_csv(home / out / "moon.csv")["id"]) == list(found.index)
    return found


def facts_of(home, out: str) -> dict:
    return json.loads((home / out / "spec.json").read_text())["runs"][0]["time_budget"]


def test_folds_in_turn_are_dropped_from_the_last(moon, monkeypatch, capsys):
    """20 rows x 4 folds x 2 views x 300 s are 13.3 h; of 4 h, 1.7 h are for each fold's identity."""
    monkeypatch.setitem(TASKS, "moon", IN_TURN)
    alone = [infer(moon, "--fold", fold, out=f"fold{fold}") for fold in range(4)]
    whole = infer(moon, "--tta", "hflip", out="whole")
    clock = tick(monkeypatch, TASKS, "moon", task=IN_TURN, forward=PASS)
    infer(moon, "--tta", "hflip", "--time-budget", "14h", out="enough")
    assert clock.time - 1000 == ROWS * 8 * PASS
    assert (moon / "enough" / "pred.csv").read_bytes() == (moon / "whole" / "pred.csv").read_bytes()
    assert "nothing was dropped" in capsys.readouterr().out and len(whole) == ROWS
    began = clock.time
    found = infer(moon, "--tta", "hflip", "--time-budget", "4h", out="some")
    assert clock.time - began < 4 * HOUR
    given = facts_of(moon, "some")["given"]
    assert {tuple(one["folds"]) for one in given} == {("0",), ("1",)} and "the last 2 folds" in capsys.readouterr().out
    single = [one for one in given if one["views"] == ["identity"]]
    assert [one["rows"] for one in single][1] == ROWS
    mean = (alone[0] + alone[1]) / 2
    same = np.isclose(found, mean, rtol=1e-6).all(axis=1)
    assert same.sum() == single[0]["rows"] > ROWS / 2 and same[-1]


def test_a_fold_that_time_cuts_short_counts_for_the_rows_it_predicted(moon, monkeypatch):
    monkeypatch.setitem(TASKS, "moon", IN_TURN)
    alone = [infer(moon, "--fold", fold, out=f"fold{fold}") for fold in range(2)]
    # the third fold's passes take five times as long as thought
    clock = tick(monkeypatch, TASKS, "moon", task=IN_TURN,
                 forward=lambda done: PASS if done < ROWS + 8 else 5 * PASS)  # fmt: skip
    found = infer(moon, "--fold", "0", "1", "--time-budget", "4h", out="cut")
    assert clock.time - 1000 < 4 * HOUR
    facts = facts_of(moon, "cut")
    first, second = (one["rows"] for one in facts["given"])
    assert first == ROWS > second > 8 and facts["left"] == 0
    both = (alone[0] + alone[1]) / 2
    np.testing.assert_allclose(found.iloc[:second], both.iloc[:second], rtol=1e-6)
    np.testing.assert_allclose(found.iloc[second:], alone[0].iloc[second:], rtol=1e-6)


def test_rows_that_no_fold_predicted_get_the_bad_answer(moon, monkeypatch, capsys):
    tick(monkeypatch, TASKS, "moon", task=IN_TURN, forward=PASS)
    found = infer(moon, "--time-budget", "1h", out="rows", code=3)
    facts = facts_of(moon, "rows")
    assert [one["folds"] for one in facts["given"]] == [["0"]] and 8 < facts["left"] == ROWS - facts["given"][0]["rows"]
    lost = found.iloc[ROWS - facts["left"] :]
    assert len(lost.drop_duplicates()) == 1 and len(found.drop_duplicates()) > 8
    assert f"{facts['left']} rows of {ROWS} got the medians" in capsys.readouterr().err


def test_what_could_not_be_read_is_told_from_what_was_left(moon, tmp_path, monkeypatch, capsys):
    """Together: one pass over the rows for all folds."""
    data = shutil.copytree(moon / "data", tmp_path / "data")
    (data / "tiles" / "t41.npy").unlink()
    tick(monkeypatch, TASKS, "moon", task=replace(moon_task.TASK, bad_answer="the medians"), forward=PASS)
    infer(moon, "--data", str(data), "--time-budget", "1h", out="unread", code=3)
    said, left = capsys.readouterr().err, facts_of(moon, "unread")["left"]
    assert "unreadable image: t41 got the medians\n" in said and said.count("unreadable") == 1
    assert f"{left} rows of {ROWS} got the medians" in said and 0 < left < ROWS - 2


@pytest.mark.parametrize("runs", [("one",), ("one", "two")])
def test_a_tile_that_is_left_is_background_everywhere(tiles_copy, monkeypatch, runs):
    tick(monkeypatch, TASKS, "glacier", task=GLACIER, forward=HOUR)
    words = ("--runs", *runs, "--data", "data", "--workers", "0", "--device-type", "cpu", "--batch-size", "1",
             "--time-budget", "10m")  # fmt: skip
    tiny_tiles.call(tiles_copy, "infer", *words, "--out", "left", code=3)
    monkeypatch.setitem(TASKS, "glacier", GLACIER)
    tiny_tiles.call(tiles_copy, "infer", *words[:-2], "--fold", "0", "--out", "whole")
    left, whole = (pd.read_csv(tiles_copy / name / "pred.csv").set_index("id") for name in ("left", "whole"))
    assert len(left) == 2 and list(left.index) == list(whole.index)
    first, second = ([read_probs(tiles_copy / name / table.loc[tile, "prob"]) for name, table in
                      (("left", left), ("whole", whole))] for tile in left.index)  # fmt: skip
    np.testing.assert_allclose(*first, atol=2e-3)
    assert second[0].shape == second[1].shape and (second[0][0] == 1).all() and not (second[1][0] == 1).all()
    masks = [sorted(path.name for path in (tiles_copy / name / "masks").iterdir()) for name in ("left", "whole")]
    assert masks[0] == masks[1] and len(masks[0]) == 2


def test_an_export_cannot_be_cut_short(tiles_home, tmp_path, capsys):
    words = ("--runs", "one", "--solution", tmp_path / "solution.py", "--time-budget", "1h")
    tiny_tiles.call(tiles_home, "infer", *words, code=2)
    assert "--time-budget: is for test rows alone" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_shared_backbone_is_passed_once_a_view_of_the_image():
    plain, shared = [nn.Identity() for _ in range(3)], [nn.Identity() for _ in range(3)]
    for model in shared:
        model.backbone_key = "same"
    views = ["identity", "hflip", "swap", "hflip+swap"]
    assert passes(plain, views) == 12 and passes(plain[:1], views[:2]) == 2
    assert passes(shared, views) == passes(shared[:1], views) == 2 and passes([*plain, *shared], views[:1]) == 4


# two processes


def main(home: Path) -> None:
    """Started twice: one process is three times as slow as the other, by a clock of its own."""
    sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
    import infer as script
    import train
    from common.engine import device as devices

    stop, devices.stop_processes = devices.stop_processes, lambda: None
    slow = 3 if os.environ["RANK"] == "1" else 1
    codes = []
    with pytest.MonkeyPatch.context() as patch:
        for task, words in ((IN_TURN, ("--tta", "hflip", "--out", "turns")), (moon_task.TASK, ("--out", "rows")),
                            (moon_task.TASK, ("--tta", "hflip", "--out", "views"))):  # fmt: skip
            tick(patch, TASKS, "moon", task=task, forward=PASS * slow)
            budget = {"turns": "4h", "rows": "1.5h", "views": "6h"}[words[-1]]
            codes.append(script.main([*GIVEN, "--runs", "r", "--batch-size", "3", "--time-budget", budget, *words]))
        words = [*GIVEN, "--epochs", "8", "--batch-size", "4", "--fold", "0", "--run", "two", "--save-every", "5"]
        for more in (("--time-budget", "2h"), ("--time-budget", "9h", "--resume")):
            tick(patch, TASKS, "moon", task=moon_task.TASK, step=100 * slow)
            codes.append(train.main([*words, *more]) or 0)
            patch.undo()
        patch.setitem(TASKS, "moon", moon_task.TASK)
        train.main([*words, "--run", "whole"])
    Path(f"codes{os.environ['RANK']}.json").write_text(json.dumps(codes))
    stop()


@pytest.mark.soak
def test_two_processes_stop_together_and_join_every_row(moon):
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
             "--master-port", str(free_port()), __file__]  # fmt: skip
    env = os.environ | {"PYTHONPATH": f"{Path(__file__).parent.parent}:{Path(__file__).parent}"}
    done = subprocess.run(words, cwd=moon, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    codes = [json.loads((moon / f"codes{rank}.json").read_text()) for rank in (0, 1)]
    assert codes == [[0, 3, 0, 4, 0], [0, 0, 0, 4, 0]]  # exit code 3 is the main process's to give
    for out in ("turns", "rows", "views"):
        found = pd.read_csv(moon / out / "pred.csv")
        assert list(found["id"]) == [f"t{k}" for k in range(40, 40 + ROWS)] and found.notna().all(axis=None)
    assert {tuple(one["folds"]) for one in facts_of(moon, "turns")["given"]} < {(str(fold),) for fold in range(4)}
    assert facts_of(moon, "rows")["left"] > 0 == facts_of(moon, "views")["left"]
    logs = [(moon / "runs" / name / "fold0" / "log.jsonl").read_text().splitlines() for name in ("two", "whole")]
    scores = [[json.loads(line)["score"] for line in log] for log in logs]
    assert len(scores[0]) == 8 and scores[0] == scores[1]


if __name__ == "__main__":
    main(Path())
