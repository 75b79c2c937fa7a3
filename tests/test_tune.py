"""The search: what trials are drawn and ended, what a stopped or shared one does, what the winner is trained by."""

import contextlib
import itertools
import json
import math
import shlex
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
import tiny_rts
import yaml

import train
from common.engine import runs
from common.engine.checkpoint import load_checkpoint
from common.errors import InputError
from common.files import HOST
from common.settings import read_config
from common.tasks import TASKS
from recipes import tune
from recipes.search import report, space, study, trials

optuna = pytest.importorskip("optuna")
SEARCH = Path(tune.__file__).parent / "search"
TABLES = [
    {"lr": [1, 2, 3], "loss": [["a"]]},
    {"lr": [1, 2, 3], "loss": [["b"]], "gamma": [1, 2]},
    {"lr": [1, 2, 3], "loss": [["c"]]},
]
CHOICES = {"lr": [0.001, 0.002, 0.003], "one_of": [{"loss": [["focal"]]}, {"loss": [["dice"]]}]}
TWELVE = {"lr": [0.001 * k for k in range(1, 13)]}
NOBODY = 2**22 + 1  # above Linux's largest process id


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_choices_that_it_takes(task):
    tables = space.read_choices(SEARCH / f"{task}.yaml", train.parser_of(TASKS[task]))
    assert space.count_combinations(tables) > 20


def test_all_that_is_asked_for_is_searched():
    focal, tversky = space.read_choices(SEARCH / "rts.yaml", train.parser_of(TASKS["rts"]))
    assert (focal["focal_gamma"], focal["focal_alpha"]) == ([1, 2, 3, 5], [[0.1], [0.25], [0.5], [0.75]])
    assert sorted(map(tuple, tversky["tversky"])) == list(itertools.product((0.3, 0.5, 0.7), repeat=2))
    assert "focal_gamma" not in tversky and "tversky" not in focal
    assert focal["lr"] == tversky["lr"] and len(focal["lr"]) > 1 and len(focal["ratio"]) > 1


def drawn(sampler: str, tables: list, count: int, seed=0, score=lambda choices: 0.0) -> list[dict]:
    """The choices of so many trials in memory, repeats among them."""
    study.load()
    found, opened = [], optuna.create_study(direction="maximize")
    for number in range(count):
        study.draw_by(opened, sampler, tables, seed, number)
        opened.optimize(lambda trial: found.append(space.suggest(trial, tables)) or score(found[-1]), n_trials=1)
    return found


def test_a_grid_covers_all_and_repeats_none():
    every = drawn("grid", TABLES, 12)
    expected = [{"lr": lr, "loss": [name]} for lr in (1, 2, 3) for name in "ac"]
    expected += [{"lr": lr, "loss": ["b"], "gamma": gamma} for lr in (1, 2, 3) for gamma in (1, 2)]
    assert sorted(map(str, every)) == sorted(map(str, expected))
    assert space.count_combinations(TABLES) == 12
    assert drawn("grid", TABLES, 4) == every[:4]
    assert drawn("grid", TABLES, 12, seed=1) != every


@pytest.mark.parametrize("first", [{}, {"one_of"}, {"one_of", "lr"}], ids=len)
def test_a_grid_goes_on_behind_a_process_that_was_killed_while_it_chose(first):
    study.load()
    found, opened = [], optuna.create_study(direction="maximize")
    whole = optuna.create_study()
    whole.optimize(lambda trial: space.suggest(trial, TABLES) and 0.0, n_trials=1)
    (trial,) = whole.trials
    dead = {space.ONE_OF if name == "one_of" else name for name in first}
    opened.add_trial(optuna.trial.create_trial(
        state=optuna.trial.TrialState.FAIL,
        params={name: value for name, value in trial.params.items() if name in dead},
        distributions={name: kind for name, kind in trial.distributions.items() if name in dead},
    ))  # fmt: skip

    def objective(trial):
        found.append(space.suggest(trial, TABLES))
        trial.set_user_attr("chosen", True)
        return 0.0

    for number in range(12):
        study.draw_by(opened, "grid", TABLES, 0, number)
        opened.optimize(objective, n_trials=1)
    assert len({json.dumps(choices, sort_keys=True) for choices in found}) == 12


def test_the_bayesian_sampler_finds_what_chance_does_not():
    """Of 1,000 combinations a few are good, and each option says in which direction they lie."""
    wide = [{option: list(range(10)) for option in ("a", "b", "c")}]
    score = lambda choices: -sum((value - 7) ** 2 for value in choices.values())  # noqa: E731
    best = {name: sum(max(map(score, drawn(name, wide, 40, seed, score))) for seed in range(3))
            for name in ("tpe", "random")}  # fmt: skip
    assert best["tpe"] > best["random"]


def test_ranges_are_drawn_from():
    tables = [{"lr": {"low": 1e-5, "high": 1e-2, "log": True}, "smote_k": {"low": 1, "high": 3, "log": False}}]
    found = drawn("random", tables, 60)
    assert {choices["smote_k"] for choices in found} == {1, 2, 3}
    assert 20 < sum(choices["lr"] < 10**-3.5 for choices in found) < 40 and math.isinf(space.count_combinations(tables))


def test_options_of_which_tables_differ_are_parameters_of_their_own():
    tables = [{"loss": [["a"]], "lr": [1, 2], "k": [1, 2]}, {"loss": [["b"]], "lr": [3, 4], "k": [1, 2]}]
    names = {(place, option): space.parameter_name(tables, place, option) for place in (0, 1) for option in ("lr", "k")}
    assert names == {(0, "lr"): "lr (0)", (1, "lr"): "lr (1)", (0, "k"): "k", (1, "k"): "k"}
    assert space.table_labels(tables) == ["0: a", "1: b"]


class Trainer:
    """Stands for train.py: a score that is a function of the settings and of the fold, the first one easy; `codes` are
    exit codes by run, 2 that of a collapse, "full" that of a full disk, which is the same."""

    def __init__(self, codes=()):
        self.calls, self.codes = [], dict(codes)

    def __call__(self, words: list[str]) -> int:
        given = dict(zip(words[::2], words[1::2], strict=False))
        settings, name, fold = read_config(given["--config"]), given["--run"], int(given["--fold"])
        self.calls.append((name, fold, settings, words))
        code = self.codes.get(name, 0)
        score = settings["lr"] * 100 + settings.get("epochs", 1) / 1000 + (0.1, -0.1)[fold]
        if settings.get("loss") == ["dice"]:  # learns late
            score += -0.5 if settings.get("epochs", 9) < 4 else 0.5
        folder = Path("runs") / name / f"fold{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "last.pt").touch()
        log = [{"epoch": 1, "score": 0.1}, {"epoch": 2, "score": 0.9}, {"epoch": 3, "score": 0.2}]
        if code == 2:
            log = [{"epoch": 1, "score": 0.0, "predicts_nothing": True, "train_predicted": 0}]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        if code == 0:
            (folder / "finished.json").write_text(json.dumps({"score": score}))
        return 2 if code == "full" else code

    def runs(self) -> list[str]:
        """Names of the runs, as often as they were called, in order."""
        return [name for name, *_ in self.calls]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "find_folds", lambda home, config: ([0, 1], "0123456789abcdef"))
    monkeypatch.setattr(report, "write_plots", lambda study, folder: [])
    stores, opened = {}, study.open_storage  # SQLite syncs the disk 80 times a trial
    inside = lambda address: stores.setdefault(address, optuna.storages.InMemoryStorage())  # noqa: E731
    monkeypatch.setattr(
        study, "open_storage", lambda address: inside(address) if address.endswith("/study.db") else opened(address)
    )
    (tmp_path / "choices.yaml").write_text(yaml.safe_dump(CHOICES))
    return tmp_path


def search(monkeypatch, *words, codes=(), choices=None) -> Trainer:
    trainer = Trainer(codes)
    if choices is not None:
        Path("choices.yaml").write_text(yaml.safe_dump(choices))
    monkeypatch.setattr(trials, "launch", trainer)
    tune.main(["--task", "rts", "--choices", "choices.yaml", "--name", "s", *map(str, words)])
    return trainer


def test_the_best_of_the_short_runs_are_run_longer(home, monkeypatch, capsys):
    choices = TWELVE
    trainer = search(monkeypatch, "--epochs", 2, 5, "--keep", 3, "--trials", 12, "--", "--data", "d", "--crop", "64",
                     choices=choices)  # fmt: skip
    longer = {name for name in trainer.runs() if "-e5-" in name}
    assert len({name for name in trainer.runs() if "-e2-" in name}) == 12 and 2 <= len(longer) <= 7
    assert all(settings["data"] == "d" and settings["crop"] == 64 for *_, settings, _ in trainer.calls)
    table = pd.read_csv("runs/s/results.csv")
    assert table["run"].iloc[0] in longer and table["score"].iloc[0] == pytest.approx(1.205)
    assert set(table["best_epoch"]) == {2} and len(table) == 12 + len(longer)
    assert set(table.loc[table["epochs"] == 2, "state"]) == {"finished", "pruned"}
    best = read_config("runs/s/best.yaml")
    assert best == {"task": "rts", "crop": 64, "lr": 0.012}
    assert (
        "the winner in full: python train.py --config runs/s/best.yaml --run s-best --data d" in capsys.readouterr().out
    )


@pytest.mark.parametrize("words", [("--keep", 1), ("--keep", 3, "--no-prune")])
def test_the_last_round_decides(home, monkeypatch, words):
    """dice is worse in short runs and better in long ones: it wins where it is let through."""
    trainer = search(monkeypatch, "--epochs", 2, 5, *words, "--trials", 9)
    assert read_config("runs/s/best.yaml")["loss"] == ["dice"] and len(trainer.calls) == 6 * 2 * 2


def test_folds_end_a_poor_trial(home, monkeypatch):
    """By the mean so far against the finished trials at that fold, although a first fold that is easy was better."""
    trainer = search(monkeypatch, "--trials", 12, "--sampler", "grid", choices=TWELVE)
    table = pd.read_csv("runs/s/results.csv")
    assert {1, 2} == set(table["folds"]) and set(table.loc[table["folds"] == 1, "state"]) == {"pruned"}
    finished = table[table["state"] == "finished"]
    assert len(finished) >= 5 and finished["lr"].max() == table["lr"].max() == pytest.approx(0.012)
    assert table["state"].iloc[0] == "finished" and len(trainer.calls) == table["folds"].sum() < 24
    whole = search(monkeypatch, "--name", "t", "--trials", 12, "--no-prune", choices=TWELVE)
    assert len(whole.calls) == 24


def test_a_trial_is_judged_by_its_last_mean_not_by_its_best(home):
    opened = optuna.create_study(direction="maximize", pruner=study.pruner_of(3, 1, True))
    for value in range(5):
        trial = opened.ask()
        trial.report(0.9, 1)
        trial.report(0.5 + value / 100, 2)
        opened.tell(trial, 0.5)
    trial = opened.ask()
    trial.report(0.95, 1)
    assert not trial.should_prune()
    trial.report(0.4, 2)
    assert trial.should_prune()


def test_a_stopped_search_goes_on_and_takes_more_trials(home, monkeypatch, capsys):
    grid = ("--sampler", "grid", "--no-prune")
    with pytest.raises(InputError, match="s-002: train.py ended with code 1"):
        search(monkeypatch, *grid, "--trials", 4, codes={"s-002": 1})
    trainer = search(monkeypatch, *grid, "--trials", 4)
    assert trainer.runs()[:2] == ["s-002"] * 2 and len(set(trainer.runs())) == 2
    assert trainer.calls[0][3][-1] == "--resume" and "--resume" not in trainer.calls[1][3]
    assert not search(monkeypatch, *grid, "--trials", 4).calls
    assert len(set(search(monkeypatch, *grid, "--trials", 6).runs())) == 2
    table = pd.read_csv("runs/s/results.csv")
    assert len(table) == 6 and set(table["state"]) == {"finished"}
    assert table[["lr", "loss"]].drop_duplicates().shape == (6, 2)
    assert "(6 of 6)" in capsys.readouterr().out


def leave_dead(worker: str, address="sqlite:///runs/s/study.db") -> None:
    """A trial that runs, left by that worker."""
    opened = optuna.load_study(study_name="s", storage=study.open_storage(address))
    opened.sampler = optuna.samplers.RandomSampler(seed=5)
    trial = opened.ask()
    trial.set_user_attr("worker", worker)
    trial.set_user_attr("run", "s-dead")
    space.suggest(trial, space.read_choices(Path("choices.yaml"), train.parser_of(TASKS["rts"])))


def test_what_a_dead_process_left_is_tried_again(home, monkeypatch, capsys):
    search(monkeypatch, "--trials", 1)
    leave_dead(f"{HOST}:{NOBODY}")
    trainer = search(monkeypatch, "--trials", 6)
    assert "1 trial(s) that were stopped are tried again" in capsys.readouterr().out
    assert trainer.runs()[:2] == ["s-dead"] * 2
    assert pd.read_csv("runs/s/results.csv")[["lr", "loss"]].drop_duplicates().shape == (6, 2)


def test_what_runs_elsewhere_is_left_alone_until_it_is_taken_over(home, monkeypatch, capsys):
    words = ("--trials", 2, "--storage", "shared/s.journal")
    search(monkeypatch, *words[:1], 1, *words[2:])
    leave_dead("faraway:1", "shared/s.journal")
    assert not search(monkeypatch, *words).calls
    assert "1 trial(s) still run elsewhere" in capsys.readouterr().out
    assert search(monkeypatch, *words, "--take-over").runs() == ["s-dead"] * 2


def test_what_ends_with_an_error_twice_is_given_up(home, monkeypatch):
    for _ in range(2):
        with pytest.raises(InputError, match="s-001: train.py ended with code 70"):
            search(monkeypatch, "--trials", 6, codes={"s-001": 70})
    trainer = search(monkeypatch, "--trials", 6, codes={"s-001": 70})
    assert "s-001" not in trainer.runs() and len(set(trainer.runs())) == 4
    table = pd.read_csv("runs/s/results.csv")
    assert table["state"].value_counts().to_dict() == {"finished": 5}


def test_where_all_were_given_up_other_settings_are_the_remedy(home, monkeypatch):
    for said in ("s-000: train.py ended", "s-000: train.py ended", "every trial failed; .*more --trials try other"):
        with pytest.raises(InputError, match=said):
            search(monkeypatch, "--trials", 1, codes={"s-000": 70})


def test_only_a_collapse_counts_as_a_result(home, monkeypatch):
    with pytest.raises(InputError, match="s-001: train.py ended with code 2"):
        search(monkeypatch, "--trials", 2, codes={"s-001": "full"})
    assert search(monkeypatch, "--trials", 2).runs() == ["s-001"] * 2


def test_other_settings_are_no_continuation(home, monkeypatch):
    search(monkeypatch, "--trials", 1, "--", "--crop", "64")
    with pytest.raises(InputError, match="other settings .*crop.*; give the search another --name"):
        search(monkeypatch, "--trials", 1, "--", "--crop", "32")
    with pytest.raises(InputError, match="other settings .*epochs"):
        search(monkeypatch, "--trials", 1, "--epochs", 3, "--", "--crop", "64")
    assert not search(monkeypatch, "--trials", 1, "--", "--crop", "64", "--workers", "7", "--data", "x").calls


def test_a_collapsed_trial_is_last_and_not_run_again(home, monkeypatch):
    codes = {"s-000": 2}
    trainer = search(monkeypatch, "--trials", 2, codes=codes)
    assert trainer.runs() == ["s-000", "s-001", "s-001"], "a second fold of what collapsed would tell nothing"
    table = pd.read_csv("runs/s/results.csv")
    assert table["run"].tolist() == ["s-001", "s-000"] and table["state"].tolist() == ["finished", "collapsed"]
    assert not search(monkeypatch, "--trials", 2).calls
    with pytest.raises(InputError, match="every trial collapsed; choose other losses"):
        search(monkeypatch, "--name", "t", "--trials", 1, codes={"t-000": 2})


def test_what_is_given_is_not_searched(home, monkeypatch, capsys):
    trainer = search(monkeypatch, "--trials", 9, "--no-prune", "--", "--loss", "dice")
    assert sorted({settings["lr"] for *_, settings, _ in trainer.calls}) == CHOICES["lr"] and len(trainer.calls) == 6
    assert all(settings["loss"] == ["dice"] for *_, settings, _ in trainer.calls)
    assert read_config("runs/s/best.yaml") == {"task": "rts", "loss": ["dice"], "lr": 0.003}
    assert "not searched, since given: loss" in capsys.readouterr().out


def test_tables_that_are_alike_without_what_is_given_are_one(home, monkeypatch):
    trainer = search(monkeypatch, "--trials", 9, "--no-prune", "--", "--loss", "tversky")
    assert sorted(settings["lr"] for *_, settings, _ in trainer.calls) == sorted(2 * CHOICES["lr"])


def test_a_time_budget_stops_in_time_and_the_same_call_goes_on(home, monkeypatch, capsys):
    given = []

    def late(words):
        given.append(words[words.index("--time-budget") + 1])
        return 4

    monkeypatch.setattr(trials, "launch", late)
    words = ["--task", "rts", "--choices", "choices.yaml", "--name", "s", "--trials", "2", "--time-budget", "1h"]
    assert tune.main(words) == 4
    assert len(given) == 1 and 3500 < float(given[0][:-1]) <= 3600
    assert "stopped by --time-budget after 0 trials" in capsys.readouterr().out
    assert set(search(monkeypatch, "--trials", 2).runs()[:2]) == {"s-000"}


@pytest.mark.parametrize(
    ("choices", "words", "said"),
    [
        ({"lrr": [1]}, [], "lrr is no option to choose; did you mean --lr"),
        ({"lr": 3}, [], "lr: give a list of choices or {low, high}, not 3"),
        ({"lr": ["x"]}, [], "'x' is not a valid value"),
        ({"lr": [1, 1]}, [], "lr: names a choice twice"),
        ({"lr": {"low": 1}}, [], "lr: a range is {low: A, high: B}"),
        ({"lr": {"low": 2, "high": 1}}, [], "two finite numbers, low < high"),
        ({"lr": {"low": 1, "high": math.inf}}, [], "two finite numbers, low < high"),
        ([1, 2], [], "--choices choices.yaml: must be a list of"),
        (CHOICES, ["--epochs", "8", "2"], "--epochs: each number must be larger"),
        (CHOICES, ["--epochs", "2", "2"], "--epochs: each number must be larger"),
        (CHOICES, ["--name", "a/b"], "--name a/b: is a name, not a path"),
        (CHOICES, ["--name", ".."], "--name ..: is a name, not a path"),
        (CHOICES, ["--storage", "."], "--storage .: is no journal of Optuna"),
        ({"lr": {"low": 0, "high": 1, "log": True}}, [], "low > 0 where log is true"),
        ({"lr": {"low": 1, "high": 2}}, ["--sampler", "grid"], "--sampler grid: choices.yaml has ranges"),
        ({"tversky": [[0.3]]}, [], "tversky takes 2 values"),
        ({"one_of": {"lr": [1]}}, [], "one_of must be a list of tables"),
        ({"run": ["a"]}, [], "run is no option to choose"),
        ({"fold": ["1", "2"]}, [], "fold is no option to choose"),
        (CHOICES, ["--", "--run", "x"], "--run after --"),
        (CHOICES, ["--", "--time-budget", "1h"], "--time-budget after --"),
        (CHOICES, ["--", "--config", "x.yaml"], "--config after --"),
        (CHOICES, ["--", "--lrr", "1"], "unknown option --lrr; did you mean --lr"),
        (CHOICES, ["--epochs", "1", "--", "--epochs", "2"], "--epochs: is given twice"),
        (CHOICES, ["--choices", "none.yaml"], "--choices none.yaml: no such file"),
        (CHOICES, ["--storage", "choices.yaml"], "--storage choices.yaml: is no journal of Optuna"),
        (CHOICES, ["--storage", "sqlite:///none/x.db"], "--storage sqlite:///none/x.db: .*unable to open"),
        (CHOICES, ["--storage", "oracle9://me:secret@host/x"], "--storage oracle9://…@host/x: "),
    ],
)
def test_wrong_input_is_told_before_anything_is_trained(home, monkeypatch, choices, words, said):
    (home / "choices.yaml").write_text(yaml.safe_dump(choices))
    trainer = Trainer()
    monkeypatch.setattr(trials, "launch", trainer)
    with pytest.raises(InputError, match=said) as raised:
        tune.main(["--task", "rts", "--choices", "choices.yaml", *words])
    assert not trainer.calls and "secret" not in str(raised.value)


def test_a_database_of_another_program_is_no_store(home):
    """As MLflow's, which notes its version in a table of the same name."""
    with contextlib.closing(sqlite3.connect("other.db")) as base:
        base.executescript("create table alembic_version(version_num text); insert into alembic_version values('abc')")
    with pytest.raises(InputError, match="--storage sqlite:///other.db: is the database of another program"):
        tune.main(["--task", "rts", "--choices", "choices.yaml", "--storage", "sqlite:///other.db"])


def test_without_optuna_one_line_says_what_to_install(home, monkeypatch):
    monkeypatch.setattr(study, "optuna", None)
    with pytest.raises(InputError, match="pip install 'optuna"):
        tune.main(["--task", "rts", "--choices", "choices.yaml"])


def test_a_process_of_its_own_tells_how_it_ended(tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.write_text("import os, sys\nopen(sys.argv[1], 'w').write(sys.argv[2])\nsys.exit(int(sys.argv[2]))\n")
    monkeypatch.setattr(trials, "TRAIN", script)
    assert [trials.launch([str(tmp_path / "said"), code]) for code in ("0", "4")] == [0, 4]
    assert (tmp_path / "said").read_text() == "4"


def in_this_process(words: list[str]) -> int:
    return train.main(words) or 0


def test_a_trial_is_an_ordinary_run_and_its_winner_is_trained_by_the_command(tmp_path, monkeypatch, capsys):
    """Once with train.py itself; then what is printed, as it is printed."""
    tiny_rts.make_rts(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trials, "launch", in_this_process)
    monkeypatch.setattr(report, "write_plots", lambda study, folder: [])
    words = ["--task", "rts", "--trials", "1", "--epochs", "1", "--", "--data", "data", *tiny_rts.SMALL[2:]]
    tune.main(words)
    (line,) = pd.read_csv("runs/tune-rts-0/results.csv").to_dict("records")
    run = Path("runs") / line["run"]
    finished = json.loads((run / "fold0" / "finished.json").read_text())
    assert (line["state"], line["best_epoch"], line["score"]) == ("finished", 1, finished["score"])
    settings, best = read_config(run / "fold0" / "args.yaml"), read_config("runs/tune-rts-0/best.yaml")
    assert settings["epochs"] == 1 and "epochs" not in best
    command = winner(capsys.readouterr().out)
    assert command[:2] == ["python", "train.py"] and command[-2:] == ["--workers", "0"]
    assert in_this_process([*command[2:], "--epochs", "1"]) == 0
    won = Path("runs/tune-rts-0-best/fold0")
    assert runs.is_finished(won) and json.loads((won / "finished.json").read_text())["score"] == finished["score"]
    weights, same = (load_checkpoint(folder / "last.pt")["ema"] for folder in (run / "fold0", won))
    assert all((weights[key] == same[key]).all() for key in weights)
    monkeypatch.setattr(trials, "launch", lambda words: pytest.fail("trained again"))
    tune.main(words)


def winner(said: str) -> list[str]:
    """The words of the one command that a search prints."""
    (line,) = [line for line in said.splitlines() if line.startswith("the winner in full: ")]
    return shlex.split(line.removeprefix("the winner in full: "))


@pytest.mark.soak
def test_plots_are_drawn_of_what_there_is(tmp_path):
    study.load()
    opened = optuna.create_study(direction="maximize")
    assert len(report.write_plots(opened, tmp_path)) < 6

    def objective(trial):
        choices = space.suggest(trial, TABLES)
        trial.report(choices["lr"], 1)
        return choices["lr"] / 2 + trial.number / 100

    opened.optimize(objective, n_trials=6)
    assert report.write_plots(opened, tmp_path) == []
    found = {path.name: path.read_bytes()[1:4] for path in tmp_path.iterdir()}
    assert found == {f"{name}.png": b"PNG" for name in ("history", "folds", "parallel", "importances", "slices",
                                                         "timeline")}  # fmt: skip
