"""Every recipe as a user gives it: settings that train.py takes, commands that exist, a search that goes on."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny_rts
import yaml

import ensemble
import infer
import make_folds
import train
from common.engine import runs
from common.errors import InputError
from common.session import pick_task
from common.settings import check_expected, parse_settings, plain_settings, read_config
from common.tasks import TASKS

ROOT = Path(train.__file__).parent
RECIPES = ROOT / "recipes"
sys.path.insert(0, str(RECIPES))
import tune  # noqa: E402

SETTINGS = sorted([*RECIPES.glob("*.yaml"), *RECIPES.glob("rts-matrix/*.yaml")])
CELLS = [path for path in SETTINGS if path.parent.name == "rts-matrix" and path.stem != "baseline"]
SCRIPTS = {"make_folds.py": make_folds, "train.py": train, "infer.py": infer, "ensemble.py": ensemble}
# stands for python and torchrun in a recipe: notes the words, leaves what the next command looks for
STAND_IN = """#!{python}
import json, os, pathlib, runpy, sys
words = sys.argv[1:]
words = words[words.index("--") + 1 :] if "--" in words else words
if words == ["-"]:
    exec(sys.stdin.read())
    sys.exit()
with open({log!r}, "a") as file:
    file.write(json.dumps(words) + "\\n")
if words[0] == "train.py":
    run = pathlib.Path("runs", words[words.index("--run") + 1])
    if run.name == os.environ.get("FAILS"):
        print("said on the way")
        print(os.environ["SAYS"], file=sys.stderr)
        sys.exit(2)
    (run / "fold0").mkdir(parents=True, exist_ok=True)
    (run / "post.json").write_text("{{}}")
if "--compare" in words:
    names = [word for word in words if word.startswith("rts-matrix-")]
    pathlib.Path("out/rts-matrix").mkdir(parents=True)
    lines = [f"{{name}},{{k / 10}}" for k, name in enumerate(names)]
    pathlib.Path("out/rts-matrix/compare.csv").write_text("run,balanced_iou\\n" + "\\n".join(lines) + "\\n")
"""


def settle(*words) -> dict:
    """The settings of train.py with these words, on data that are no demo."""
    words = [str(word) for word in words]
    task = pick_task(TASKS, words)
    return plain_settings(parse_settings(train.parser_of(task), words, [("[task defaults]", task.defaults)]))


def differing(found: dict, base: dict) -> dict:
    return {key: value for key, value in found.items() if value != base[key]}


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_every_recipe_is_understood(path):
    settings, written = settle("--config", path), read_config(path)
    assert settings["task"] == written["task"]
    assert written.keys() <= settings.keys()


def test_the_baseline_is_the_field_s_and_what_the_task_does_by_default():
    found = settle("--config", RECIPES / "rts-baseline.yaml")
    assert found == settle("--task", "rts") == settle("--config", RECIPES / "rts-matrix" / "baseline.yaml")
    asked = {"arch": "unetplusplus", "encoder": "efficientnet-b7", "bands": ["red", "green", "blue"], "crop": 512,
             "loss": ["focal"], "focal_gamma": 2.0, "focal_alpha": [0.25], "lr": 1e-4, "weight_decay": 0.01,
             "schedule": "cosine", "epochs": 300, "patience": 20, "collapse_epochs": 3, "batch_size": "auto",
             "seed": 42, "ratio": [10.0], "weights": "auto"}  # fmt: skip
    assert asked == {key: found[key] for key in asked}
    assert {word.partition("=")[0] for word in found["augment"]} == {
        "rot90", "hflip", "vflip", "shift-scale-rotate", "elastic-fine", "colour-jitter"}  # fmt: skip


def test_each_cell_of_the_matrix_changes_one_thing():
    base, seen = settle("--task", "rts"), []
    together = ({"arch", "encoder"}, {"loss", "tversky"}, {"ratio", "ratio_epochs"}, {"ignore_rim"},
                {"soft_labels", "soft_width"}, {"scales_train"}, {"bands", "fusion"})  # fmt: skip
    for path in [*CELLS, *(RECIPES / f"rts-{name}.yaml" for name in ("ndvi", "dem", "all-bands", "late-fusion"))]:
        changed = differing(settle("--config", path), base)
        assert changed and any(changed.keys() <= kind for kind in together), (path, changed)
        assert changed not in seen, path
        seen.append(changed)
    values = {key: {str(cell[key]) for cell in seen if key in cell} for key in ("ratio", "arch", "loss", "fusion")}
    assert values["ratio"] == {"[20.0]", "[50.0]", "[1.0, 50.0]"}
    assert values["arch"] == {"deeplabv3plus", "segformer", "upernet", "dpt"}
    assert values["loss"] == {"['tversky']"} and values["fusion"] == {"late"}


def test_precision_weighs_more_in_the_tversky_cell():
    found = settle("--config", RECIPES / "rts-matrix" / "loss-tversky.yaml")
    alpha, beta = found["tversky"]
    assert beta > alpha and found["foreground"]
    assert settle("--task", "rts", "--loss", "tversky")["foreground"], "of the class alone without a second option"


def commands_of(recipe: Path, folder: Path, *words, said=None, **environment) -> list[list[str]]:
    """The commands that a recipe gives, run in an empty folder with a stand-in for python and torchrun.

    said: a list that gets its exit code, stdout and stderr; without one it must end well.
    """
    log, stand_in = folder / "log", folder / "bin"
    stand_in.mkdir()
    (folder / "recipes").symlink_to(RECIPES)
    for name in ("python", "torchrun"):
        (stand_in / name).write_text(STAND_IN.format(python=sys.executable, log=str(log)))
        (stand_in / name).chmod(0o755)
    path = {"PATH": f"{stand_in}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(recipe), *words], cwd=folder, env=os.environ | path | environment,
                          capture_output=True, text=True)  # fmt: skip
    if said is not None:
        said += [done.returncode, done.stdout, done.stderr]
    assert said or done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def understood(command: list[str], default: str | None = None) -> dict:
    """The settings of a command. InputError where its script would not take it.

    default: the task of its runs, where their names do not tell.
    """
    script, words = SCRIPTS[command[0]], list(command[1:])
    named = dict(itertools.pairwise(words))
    of_run = next((name for name in TASKS if name in f"{named.get('--runs')} {named.get('--preds')}"), default)
    task = pick_task(TASKS, words, of_run)
    known = [("[task defaults]", task.defaults)] if script is train else []
    return plain_settings(parse_settings(script.parser_of(task), words, known))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.stem)
def test_every_command_of_a_recipe_is_understood(recipe, tmp_path, monkeypatch):
    alone = ("baseline", "blend", "matrix", "versions")
    words = ["a", "b", "c"] if recipe.stem == "landslide-maps" else ["a", "b"]
    words = ["data"] if any(name in recipe.stem for name in alone) else words
    commands = commands_of(recipe, tmp_path, *words, SEEDS="1 2", CELLS="baseline ratio-20 rts-ndvi")
    monkeypatch.chdir(ROOT)
    for command in commands:
        understood(command)
    assert {command[0] for command in commands} >= {"train.py", "ensemble.py"}


def versions_of(folder: Path, *words, **environment) -> tuple[dict[str, dict], list[list[str]]]:
    """({run: its settings}, all commands) of the recipe that trains V1 to V2.5."""
    commands = commands_of(RECIPES / "landslide-versions.sh", folder, "data", *words, **environment)
    trained = [command for command in commands if command[0] == "train.py"]
    return {command[command.index("--run") + 1]: understood(command) for command in trained}, commands


def test_the_versions_differ_in_what_they_are_named_for(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found, commands = versions_of(tmp_path, "small", "--epochs", "3", ABLATION_SEEDS="42")
    assert [name for name in found if name.endswith("-s123")] == ["v1-s123", "v2-s123", "v2.5-s123"]
    assert commands[-1][commands[-1].index("--runs") + 1 :][: len(found)] == list(found) and len(found) == 12
    assert "--crf" in commands[-1] and "--compare" in commands[-1]
    assert {one["crop"] for one in found.values()} == {96} and {one["epochs"] for one in found.values()} == {3}
    names = {"run", "seed"}
    full = found["v2.5-s42"]
    without = {"resnet50": {"encoder"}, "no-attention": {"spatial_attention"}, "no-smote": {"smote"}}
    for name, what in without.items():
        assert differing(found[f"v2.5-{name}-s42"], full).keys() == what | {"run"}, name
    assert differing(found["v2.5-s456"], full).keys() == names
    assert differing(found["v2-s42"], found["v1-s42"]).keys() - {"run"} == {
        "head", "ordinal_weight", "ordinal_smoothing", "oversample_target", "oversample_class"}  # fmt: skip
    assert differing(full, found["v2-s42"]).keys() - {"run"} == {
        "encoder", "spatial_attention", "smote", "oversample_target"}  # fmt: skip


def test_stopped_versions_go_on(tmp_path, monkeypatch):
    (tmp_path / "runs" / "v2-s1" / "fold0").mkdir(parents=True)
    (tmp_path / "runs" / "v2-s1" / "fold0" / "last.pt").touch()
    monkeypatch.chdir(ROOT)
    _, commands = versions_of(tmp_path, SEEDS="1", ABLATION_SEEDS="1")
    assert [command[command.index("--run") + 1] for command in commands if "--resume" in command] == ["v2-s1"]
    assert "--folds" not in commands[0] and not any("--crop" in command for command in commands)
    made = commands[0][commands[0].index("--out") + 1]
    assert all(command[command.index("--folds") + 1] == made for command in commands if command[0] == "train.py")


V25 = ["encoder=efficientnet-b4", "spatial_attention=head", "head=coral", "ordinal_weight=.3", "ordinal_smoothing=.2",
       "loss=focal=.7 dice=.3", "focal_gamma=2.5", "focal_alpha=[.4, 2.5, 2]", "oversample_target=.075", "smote=True",
       "smote_k=5", "smote_mode=windows"]  # fmt: skip


def test_v2_5_is_what_was_specified():
    settings = settle("--config", RECIPES / "landslide-v2.5.yaml")
    check_expected(settings, V25)
    for key, value in {"smote": False, "encoder": "resnet50", "focal_alpha": [1.0, 2.5, 2.0], "smote_k": 4}.items():
        with pytest.raises(InputError, match=f"{key} is "):
            check_expected(settings | {key: value}, V25)
    text = (ROOT / "README.md").read_text()
    assert "landslide" not in text or all(item in text for item in V25)


def test_rasters_become_tiles_once(tmp_path):
    commands = commands_of(RECIPES / "landslide-maps.sh", tmp_path, "out", "dem.tif", "labels.tif", "--epochs", "2",
                           IMAGE="a.tif b.tif", AOI="aoi.gpkg")  # fmt: skip
    assert [command[0] for command in commands] == ["make_folds.py", "train.py", "ensemble.py", "infer.py"]
    cut = commands[0]
    assert cut[cut.index("--raster") + 1 :][:2] == ["a.tif", "b.tif"] and cut[cut.index("--aoi") + 1] == "aoi.gpkg"
    assert "--land-cover" not in cut and commands[1][-2:] == ["--epochs", "2"]
    assert commands[2][commands[2].index("--gates") + 1] == "production" and "--crf" in commands[3]
    again = tmp_path / "again"
    (again / "out").mkdir(parents=True)
    (again / "out" / "folds.csv").touch()
    commands = commands_of(RECIPES / "landslide-maps.sh", again, "out", "dem.tif", "labels.tif")
    assert commands[0][0] == "train.py"


def test_the_matrix_trains_every_cell_over_its_seeds_and_compares(tmp_path):
    commands = commands_of(RECIPES / "rts-matrix.sh", tmp_path, "data", "--epochs", "3", SEEDS="1 2")
    trained = [command for command in commands if command[0] == "train.py"]
    cells = {(command[command.index("--config") + 1], command[command.index("--seed") + 1]) for command in trained}
    assert len(trained) == len(cells) == 2 * (len(CELLS) + 5)
    assert all((ROOT / recipe).is_file() for recipe, _ in cells)
    assert all(command[-2:] == ["--epochs", "3"] for command in trained)
    compared = commands[-1]
    names = [word for word in compared if word.startswith("rts-matrix-")]
    assert set(names) == {command[command.index("--run") + 1] for command in trained}
    table = pd.read_csv(tmp_path / "out" / "rts-matrix" / "cells.csv").set_index("cell")
    place = names.index("rts-matrix-ratio-20-s1")
    assert set(table.index) == {Path(recipe).stem for recipe, _ in cells}
    assert table.loc["ratio-20", "balanced_iou"] == pytest.approx((2 * place + 1) / 20)
    assert table.loc["ratio-20", "balanced_iou_spread"] == pytest.approx(0.0707, abs=1e-4)


def test_a_stopped_matrix_goes_on(tmp_path):
    fold = tmp_path / "runs" / "rts-matrix-baseline-s2" / "fold0"
    fold.mkdir(parents=True)
    (fold / "last.pt").touch()
    commands = commands_of(RECIPES / "rts-matrix.sh", tmp_path, "data", CELLS="baseline")
    resumed = [command[command.index("--run") + 1] for command in commands if "--resume" in command]
    assert resumed == ["rts-matrix-baseline-s2"]


@pytest.mark.parametrize(("says", "goes_on"), [("error: collapsed: for 3 epochs, ...", True),
                                               ("error: data: no such folder", False)])  # fmt: skip
def test_the_matrix_goes_on_after_a_collapse_and_after_nothing_else(tmp_path, says, goes_on):
    """Both end with the same code; what is left out of the comparison is named."""
    said, failed = [], "rts-matrix-baseline-s2"
    commands = commands_of(RECIPES / "rts-matrix.sh", tmp_path, "data", said=said, CELLS="baseline ratio-20",
                           SEEDS="1 2", FAILS=failed, SAYS=says)  # fmt: skip
    code, out, errors = said
    assert (code == 0) == goes_on and says in errors and "said on the way" in out
    assert ([command[0] for command in commands].count("train.py"), commands[-1][0]) == (
        (4, "ensemble.py") if goes_on else (2, "train.py"))  # fmt: skip
    assert goes_on == (f"without out-of-fold predictions of all folds: {failed}\n" in out)
    assert failed not in commands[-1] or not goes_on


def test_a_matrix_that_collapses_throughout_compares_nothing(tmp_path):
    said = []
    commands = commands_of(RECIPES / "rts-matrix.sh", tmp_path, "data", said=said, CELLS="baseline", SEEDS="1",
                           FAILS="rts-matrix-baseline-s1", SAYS="error: collapsed: ...")  # fmt: skip
    assert said[0] == 2 and "no run has been finished" in said[2] and commands[-1][0] == "train.py"


def test_a_stopped_map_goes_on(tmp_path):
    for fold in ("fold0", "fold1"):
        (tmp_path / "runs" / "rts" / fold).mkdir(parents=True)
        (tmp_path / "runs" / "rts" / fold / "last.pt").touch()
    commands = commands_of(RECIPES / "rts-map.sh", tmp_path, "data", "scenes", "--epochs", "3")
    assert [command[-1] for command in commands if command[0] == "train.py"] == ["--resume"]
    assert not any("--resume" in command for command in commands if command[0] != "train.py")


def test_the_demo_maps_anew_and_tests_with_one_view():
    """A map of the model before must not be in the way, and thresholds were fitted without views."""
    done = subprocess.run(["make", "-n", "demo", "TASK=rts", "VENV=none"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    mapped = next(place for place, line in enumerate(lines) if "--scene " in line)
    assert lines[mapped - 1].startswith("rm -rf demo/rts/map") and "--out demo/rts/map" in lines[mapped]
    assert not any("--tta" in line for line in lines) and sum("--final-test" in line for line in lines) == 1
    other = subprocess.run(["make", "-n", "demo", "VENV=none"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "--tta" in other and "rm -rf" not in other


def test_the_map_looks_at_the_test_rows_after_the_calibration_and_once(tmp_path):
    commands = commands_of(RECIPES / "rts-map.sh", tmp_path, "data", "scenes", "--epochs", "3")
    jobs = [next((word for word in command if word in ("--calibrate", "--final-test", "--scene")), command[0])
            for command in commands]  # fmt: skip
    assert jobs == ["make_folds.py", "train.py", "ensemble.py", "--calibrate", "infer.py", "--final-test", "--scene"]
    again = tmp_path / "again"
    (again / "runs" / "rts").mkdir(parents=True)
    (again / "runs" / "rts" / "final-test.json").touch()
    commands = commands_of(RECIPES / "rts-map.sh", again, "data", "scenes")
    assert not any("--final-test" in command for command in commands) and "--scene" in commands[-1]


# the search


@pytest.mark.parametrize("path", sorted((RECIPES / "search").glob("*.yaml")), ids=lambda path: path.stem)
def test_choices_are_understood(path):
    assert tune.read_choices(path, train.parser_of(TASKS[path.stem]))


def test_all_that_is_asked_for_is_searched():
    focal, tversky = tune.read_choices(RECIPES / "search" / "rts.yaml", train.parser_of(TASKS["rts"]))
    assert (focal["focal_gamma"], focal["focal_alpha"]) == ([1, 2, 3, 5], [[0.1], [0.25], [0.5], [0.75]])
    assert sorted(map(tuple, tversky["tversky"])) == list(itertools.product((0.3, 0.5, 0.7), repeat=2))
    assert "focal_gamma" not in tversky and "tversky" not in focal
    assert focal["lr"] == tversky["lr"] and len(focal["lr"]) > 1 and len(focal["ratio"]) > 1


TABLES = [
    {"lr": [1, 2, 3], "loss": [["a"]]},
    {"lr": [1, 2, 3], "loss": [["b"]], "gamma": [1, 2]},
    {"lr": [1, 2, 3], "loss": [["c"]]},
]


def test_draws_are_different_and_cover_all():
    every = tune.draw_trials(TABLES, 0, 100)
    expected = [{"lr": lr, "loss": [name]} for lr in (1, 2, 3) for name in "ac"]
    expected += [{"lr": lr, "loss": ["b"], "gamma": gamma} for lr in (1, 2, 3) for gamma in (1, 2)]
    assert sorted(map(str, every)) == sorted(map(str, expected))
    assert tune.draw_trials(TABLES, 0, 4) == every[:4]
    assert tune.draw_trials(TABLES, 1, 12) != every
    first = [tune.draw_trials(TABLES, seed, 1)[0]["loss"] for seed in range(600)]
    assert first.count(["b"]) == pytest.approx(300, abs=60)  # of twelve combinations six


class Trainer:
    """Stands for train.py: a score that is a function of the settings; `codes` are exit codes by run, 2 that of a
    collapse, "full" that of a full disk, which is the same."""

    def __init__(self, codes=()):
        self.calls, self.codes = [], dict(codes)

    def __call__(self, words: list[str]) -> int:
        settings, name = read_config(words[words.index("--config") + 1]), words[words.index("--run") + 1]
        self.calls.append((name, settings, words))
        code = self.codes.get(name, 0)
        score = settings["lr"] * 100 + settings.get("epochs", 1) / 1000
        if settings.get("loss") == ["dice"]:  # learns late
            score += -0.5 if settings.get("epochs", 9) < 4 else 0.5
        for fold, shift in (("fold0", -0.1), ("fold1", 0.1)):
            folder = Path("runs") / name / fold
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "last.pt").touch()
            log = [{"epoch": 1, "score": 0.1}, {"epoch": 2, "score": 0.9}, {"epoch": 3, "score": 0.2}]
            if code == 2:
                log = [{"epoch": 1, "score": 0.0, "predicts_nothing": True, "train_predicted": 0}]
            (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
            if code == 0:
                (folder / "finished.json").write_text(json.dumps({"score": score + shift}))
        return 2 if code == "full" else code


CHOICES = {"lr": [0.001, 0.002, 0.003], "one_of": [{"loss": [["focal"]]}, {"loss": [["dice"]]}]}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "choices.yaml").write_text(yaml.safe_dump(CHOICES))
    return tmp_path


def search(monkeypatch, *words, codes=()) -> Trainer:
    trainer = Trainer(codes)
    monkeypatch.setattr(tune, "launch", trainer)
    tune.main(["--task", "rts", "--choices", "choices.yaml", "--name", "s", *map(str, words)])
    return trainer


def test_the_best_of_the_short_runs_are_run_longer(home, monkeypatch, capsys):
    trainer = search(monkeypatch, "--epochs", 2, 5, "--keep", 2, "--trials", 9, "--", "--data", "d", "--crop", "64")
    short = [settings for _, settings, _ in trainer.calls if settings["epochs"] == 2]
    longer = [settings for _, settings, _ in trainer.calls if settings["epochs"] == 5]
    assert len(short) == 6 and len(longer) == 3 and len(trainer.calls) == 9
    assert {settings["loss"][0] for settings in longer} == {"focal"}
    assert all(words[:4] == ["--data", "d", "--crop", "64"] for _, _, words in trainer.calls)
    table = pd.read_csv("runs/s/results.csv")
    assert table["score"].is_monotonic_decreasing and table["score"].iloc[0] == pytest.approx(0.305)
    assert set(table["best_epoch"]) == {2}
    best = read_config("runs/s/best.yaml")
    assert best == {"task": "rts", "crop": 64, "lr": 0.003, "loss": ["focal"]}
    assert settle("--config", "runs/s/best.yaml", "--data", "d")["lr"] == 0.003
    assert "python train.py --config runs/s/best.yaml --data d --run NAME" in capsys.readouterr().out


def test_the_last_round_decides(home, monkeypatch):
    """dice is worse in short runs and better in long ones: it wins where it is let through."""
    search(monkeypatch, "--epochs", 2, 5, "--keep", 1, "--trials", 9)
    assert read_config("runs/s/best.yaml")["loss"] == ["dice"]


def test_a_stopped_search_goes_on_and_takes_more_trials(home, monkeypatch, capsys):
    with pytest.raises(InputError, match="s-002: train.py ended with code 1"):
        search(monkeypatch, "--trials", 4, codes={"s-002": 1})
    trainer = search(monkeypatch, "--trials", 4)
    assert [name for name, _, _ in trainer.calls] == ["s-002", "s-003"]
    assert trainer.calls[0][2][-1] == "--resume" and "--resume" not in trainer.calls[1][2]
    assert not search(monkeypatch, "--trials", 4).calls
    assert [name for name, _, _ in search(monkeypatch, "--trials", 6).calls] == ["s-004", "s-005"]
    assert len(pd.read_csv("runs/s/results.csv")) == 6
    assert "(6 of 6)" in capsys.readouterr().out


def test_only_a_collapse_counts_as_a_result(home, monkeypatch):
    with pytest.raises(InputError, match="s-001: train.py ended with code 2"):
        search(monkeypatch, "--trials", 2, codes={"s-001": "full"})
    assert [name for name, _, _ in search(monkeypatch, "--trials", 2).calls] == ["s-001"]


def test_other_settings_are_no_continuation(home, monkeypatch):
    search(monkeypatch, "--trials", 1, "--", "--crop", "64")
    with pytest.raises(InputError, match="s-000 had other settings; give the search another --name"):
        search(monkeypatch, "--trials", 1, "--", "--crop", "32")
    assert not search(monkeypatch, "--trials", 1, "--", "--crop", "64", "--workers", "7").calls


def test_a_collapsed_trial_is_last_and_not_run_again(home, monkeypatch):
    codes = {"s-000": 2}
    search(monkeypatch, "--trials", 2, codes=codes)
    table = pd.read_csv("runs/s/results.csv")
    assert table["run"].tolist() == ["s-001", "s-000"] and table["state"].tolist() == ["finished", "collapsed"]
    assert not search(monkeypatch, "--trials", 2).calls
    with pytest.raises(InputError, match="every trial collapsed"):
        search(monkeypatch, "--name", "t", "--trials", 1, codes={"t-000": 2})


def test_what_is_given_is_not_searched(home, monkeypatch, capsys):
    trainer = search(monkeypatch, "--trials", 9, "--", "--loss", "dice")
    assert sorted(settings["lr"] for _, settings, _ in trainer.calls) == CHOICES["lr"]
    assert not any("loss" in settings for _, settings, _ in trainer.calls)
    assert read_config("runs/s/best.yaml") == {"task": "rts", "loss": ["dice"], "lr": 0.003}
    assert "not searched, since given: loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choices", "words", "said"),
    [
        ({"lrr": [1]}, [], "lrr is no option to choose; did you mean --lr"),
        ({"lr": 3}, [], "lr: give a list of choices, not 3"),
        ({"lr": ["x"]}, [], "'x' is not a valid value"),
        ({"tversky": [[0.3]]}, [], "tversky takes 2 values"),
        ({"one_of": {"lr": [1]}}, [], "one_of must be a list of tables"),
        ({"run": ["a"]}, [], "run is no option to choose"),
        (CHOICES, ["--", "--run", "x"], "--run after --"),
        (CHOICES, ["--", "--config", "x.yaml"], "--config after --"),
        (CHOICES, ["--", "--lrr", "1"], "unknown option --lrr; did you mean --lr"),
        (CHOICES, ["--epochs", "1", "--", "--epochs", "2"], "--epochs: is given twice"),
        (CHOICES, ["--choices", "none.yaml"], "--choices none.yaml: no such file"),
    ],
)
def test_wrong_input_is_told_before_anything_is_trained(home, monkeypatch, choices, words, said):
    (home / "choices.yaml").write_text(yaml.safe_dump(choices))
    trainer = Trainer()
    monkeypatch.setattr(tune, "launch", trainer)
    with pytest.raises(InputError, match=said):
        tune.main(["--task", "rts", "--choices", "choices.yaml", *words])
    assert not trainer.calls


@pytest.mark.soak
def test_a_trial_is_an_ordinary_run(tmp_path, monkeypatch):
    """Once with train.py itself, in a process of its own."""
    tiny_rts.make_rts(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    words = ["--task", "rts", "--trials", "1", "--epochs", "1", "--", "--data", "data", *tiny_rts.SMALL[2:]]
    tune.main(words)
    (line,) = pd.read_csv("runs/tune-rts-0/results.csv").to_dict("records")
    run = Path("runs") / line["run"]
    finished = json.loads((run / "fold0" / "finished.json").read_text())
    assert (line["state"], line["best_epoch"], line["score"]) == ("finished", 1, finished["score"])
    settings, best = read_config(run / "fold0" / "args.yaml"), read_config("runs/tune-rts-0/best.yaml")
    assert settings["epochs"] == 1 and "epochs" not in best
    found = settle("--config", "runs/tune-rts-0/best.yaml", "--data", "data", "--epochs", "1")
    assert not {key for key in settings.keys() - runs.FREE if settings[key] != found[key]}
    monkeypatch.setattr(tune, "launch", lambda words: pytest.fail("trained again"))
    tune.main(words)
