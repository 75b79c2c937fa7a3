"""Training in a kernel: a process a fold, several processes for one, going on from an attached output."""

import os

import pytest
from fake_scripts import fake_gpus, fake_kernel

from kernels import calls, machine

FOLDS = "id,path,group,fold,target\na,a.png,g,-1,1\nb,b.png,g,0,1\nc,c.png,h,2,1\nd,d.png,h,1,1\ne,e.png,h,1,1\n"
MEET = """
here = Path(f"met{option('--fold')}")
here.write_text("x")
for _ in range(600):  # each is there until the other has come
    if len(list(Path(".").glob("met*"))) >= 2:
        break
    time.sleep(.05)
else:
    sys.exit(9)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    fake = fake_kernel(tmp_path, monkeypatch)
    (fake.inputs / "mine").mkdir()
    (fake.inputs / "mine" / "folds.csv").write_text(FOLDS)
    fake_gpus(tmp_path / "bin", monkeypatch, "Tesla T4", "Tesla T4")
    return fake


def folds_of(fake) -> list[str | None]:
    return [dict(zip(one["words"], one["words"][1:], strict=False)).get("--fold") for one in fake.noted()]


def test_every_fold_has_a_process_and_a_gpu_of_its_own(fake, capsys):
    fake.script("train.py", MEET)
    assert fake.train("train.py --run a --folds {find:folds.csv} --lr 1e-3") == 0
    assert sorted(folds_of(fake)) == ["0", "1", "2"]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in fake.noted()} == {"0", "1"}
    assert all("RANK" not in one and one["words"][:2] == ["--run", "a"] for one in fake.noted())
    said = capsys.readouterr().out
    assert "folds 0 1 2: a process each, 2 at a time" in said
    assert all(f"fold {fold} | train.py speaks, process 0" in said for fold in range(3))


def test_never_more_processes_than_gpus(fake):
    """Each notes how many there are beside it."""
    fake.script("train.py", "here = Path(f'on{os.getpid()}'); here.write_text('')\n"
                "with open('beside', 'a') as file: print(len(list(Path('.').glob('on*'))), file=file)\n"
                "time.sleep(.3); here.unlink()")  # fmt: skip
    assert fake.train("train.py --run a --train-folds 0 1 2 3 4") == 0
    assert set((fake.working / "beside").read_text().split()) <= {"1", "2"}
    assert sorted(folds_of(fake)) == ["0", "1", "2", "3", "4"]


def test_the_named_folds_are_trained_alone(fake):
    assert fake.train("train.py --train-folds 2 0 --run a --folds {find:folds.csv}") == 0
    assert sorted(folds_of(fake)) == ["0", "2"]
    assert all("--train-folds" not in one["words"] and one["words"].count("--fold") == 1 for one in fake.noted())


@pytest.mark.parametrize("words", ["--fold 1", "--fold all", "--train-folds 2"])
def test_one_fold_is_shared_by_all_gpus(fake, words):
    assert fake.train(f"train.py --run a {words}") == 0
    assert sorted(one["RANK"] for one in fake.noted()) == ["0", "1"]
    assert all(one["words"][:4] == ["--run", "a", *words.split()] for one in fake.noted())


def test_one_gpu_trains_all_folds_in_one_call(fake, tmp_path, monkeypatch):
    fake_gpus(tmp_path / "bin", monkeypatch, "Tesla T4")
    assert fake.train("train.py --run a --folds {find:folds.csv}") == 0
    (call,) = fake.noted()
    assert "--fold" not in call["words"] and "RANK" not in call and "CUDA_VISIBLE_DEVICES" not in call


def test_unknown_folds_are_written_down_by_a_check(fake, capsys):
    fake.script(
        "train.py",
        f"""
if "--check" in words:
    (Path("runs") / option("--run")).mkdir(parents=True)
    (Path("runs") / option("--run") / "folds.csv").write_text({FOLDS!r})
""",
    )
    assert fake.train("train.py --run a", time_budget="2h") == 0
    assert folds_of(fake)[0] is None and sorted(folds_of(fake)[1:]) == ["0", "1", "2"]
    first, *others = fake.noted()
    assert "--check" in first["words"] and "--time-budget" not in first["words"]
    assert not any("--check" in one["words"] or "--resume" in one["words"] for one in others)
    assert "first a check" in capsys.readouterr().out


def test_a_check_that_fails_is_the_end(fake):
    fake.script("train.py", "sys.exit(2)")
    assert fake.train("train.py --run a") == 2
    assert len(fake.noted()) == 1


def test_without_a_name_the_folds_cannot_be_known(fake, capsys):
    assert fake.train("train.py --seed 1") == 0
    assert len(fake.noted()) == 1 and "one process trains them in turn" in capsys.readouterr().out


def test_folds_of_an_earlier_start_are_not_trusted(fake):
    """folds.csv beside a run that has saved nothing is not what train.py goes by."""
    run = fake.working / "runs" / "a"
    run.mkdir(parents=True)
    (run / "folds.csv").write_text("id,fold\na,0\nb,1\n")
    fake.script(
        "train.py",
        f"""
if "--check" in words:
    Path("runs/a/folds.csv").write_text({FOLDS!r})
""",
    )
    assert fake.train("train.py --run a") == 0
    assert sorted(folds_of(fake)[1:]) == ["0", "1", "2"]


def test_after_a_fold_that_fails_none_is_begun_and_the_others_end_theirs(fake, capsys):
    fake.script(
        "train.py",
        """
if option("--fold") == "0":
    sys.exit(70)
time.sleep(1)
Path("done1").write_text("")
""",
    )
    assert fake.train("train.py --run a --train-folds 0 1 2 3") == 70
    assert sorted(folds_of(fake)) == ["0", "1"] and (fake.working / "done1").exists()
    assert "not begun: fold 2, fold 3" in capsys.readouterr().out


def test_a_fold_stopped_by_the_time_is_no_failure(fake, capsys):
    fake.script("train.py", "sys.exit(4)")
    assert fake.train("train.py --run a --train-folds 0 1 2", "train.py --run b --fold 0") == 0
    assert sorted(folds_of(fake)) == ["0", "1"]
    said = capsys.readouterr().out
    assert "training of run a is not finished: attach the output" in said and "not begun: fold 2" in said


def test_a_failure_counts_more_than_a_fold_out_of_time(fake):
    fake.script("train.py", "time.sleep(.5 if option('--fold') == '1' else 0)\n"
                "sys.exit({'0': 4, '1': 2}[option('--fold')])")  # fmt: skip
    assert fake.train("train.py --run a --train-folds 0 1") == 2


def test_each_fold_has_the_time_that_is_left(fake, monkeypatch):
    """One process after the other: 3,600 s less 60, then less what the first has spent."""
    monkeypatch.setattr(machine, "find_gpus", list)
    fake.script("train.py", "spend(1000)")
    assert fake.train("train.py --run a --train-folds 0 1 2", time_budget="1h", processes=2) == 0
    budgets = [int(one["words"][one["words"].index("--time-budget") + 1]) for one in fake.noted()]
    assert budgets[0] == 3540 and budgets[2] in (2540, 1540) and budgets == sorted(budgets, reverse=True)


@pytest.mark.parametrize(
    ("budget", "verdict"), [("58m", "28 of 29 min: enough\n"), ("56m", "28 of 27 min: NOT ENOUGH")]
)
def test_folds_that_will_not_end_in_time_are_named_early(fake, budget, verdict, capsys):
    """Two at a time, 28 minutes each by the clock of the test, one more is kept: of the last two it is known then."""
    fake.script(
        "train.py",
        f"""{MEET}
if option("--fold") == "0":
    spend(28 * 60)
while Path(os.environ["FAKE_CLOCK"]).read_text() == "0":
    time.sleep(.05)
""",
    )
    assert fake.train("train.py --run a --train-folds 0 1 2 3", time_budget=budget) == 0
    assert f"folds 2 3: 28 min a fold, {verdict}" in capsys.readouterr().out


def test_training_that_outlasts_its_time_can_go_on(fake, capsys):
    fake.script("train.py", "spend(3541 + 300); time.sleep(600)")
    assert fake.train("train.py --run a --train-folds 0 1 2", "infer.py --runs a", time_budget="1h") == 0
    assert not fake.noted("infer.py")
    said = capsys.readouterr().out
    assert "STOPPED: train.py" in said and "kernels/build.py fake-infer --attach-kernel OWNER/SLUG" in said


def attach_run(fake, mount: str = "landfold-train/runs", folds: str = "01"):
    """A run in a mount as Kaggle shows it, read-only, whose fold 0 is finished."""
    run = fake.make_run(mount, "a", folds)
    for fold in folds:
        (run / f"fold{fold}" / "last.pt").write_text(f"weights {fold}")
    (run / "fold0" / "finished.json").write_text("{}")
    (run / "folds.csv").write_text("id,fold\na,0\nb,1\nc,2\n")
    (run.parent / "ledger.csv").write_text("run,fold\na,0\n")
    for path in [*run.rglob("*"), run]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return run


WRITES = """
Path(f"runs/a/fold{option('--fold', 0)}/last.pt").write_text("new")
Path(f"runs/a/fold{option('--fold', 0)}/log.jsonl").write_text("new")
"""


def test_training_goes_on_from_an_attached_output(fake, capsys):
    run = attach_run(fake)
    fake.script("train.py", WRITES)
    assert fake.train("train.py --run a --train-folds 0 1") == 0
    assert folds_of(fake) == ["1"] and "--resume" in fake.noted()[0]["words"]  # fold 0 is finished
    here = fake.working / "runs" / "a"
    assert [(here / f"fold{fold}" / "last.pt").read_text() for fold in "01"] == ["weights 0", "new"]
    assert (run / "fold1" / "last.pt").read_text() == "weights 1"
    modes = {os.stat(path).st_mode & 0o222 for path in [here, *here.rglob("*")]}
    assert 0 not in modes  # else nobody but root could go on
    assert (here.parent / "ledger.csv").read_text() == "run,fold\na,0\n"
    assert sorted(path.name for path in here.parent.iterdir()) == ["a", "ledger.csv"]
    assert f"copied {run} to {here}" in capsys.readouterr().out


def test_the_folds_of_a_begun_run_are_its_own(fake):
    attach_run(fake)
    assert fake.train("train.py --run a") == 0
    assert sorted(folds_of(fake)) == ["1", "2"] and all("--resume" in one["words"] for one in fake.noted())


def test_a_finished_run_gets_one_more_look(fake):
    """The process of the last fold sees to what follows all folds, as post.json, should it be absent."""
    run = attach_run(fake, folds="012")
    for fold in "12":
        (run / f"fold{fold}" / "finished.json").touch()
    assert fake.train("train.py --run a") == 0
    assert [one.get("RANK") for one in fake.noted()] == [None] and folds_of(fake) == ["2"]


@pytest.mark.parametrize("word", ["--force", "--check"])
def test_what_starts_over_copies_nothing(fake, word):
    attach_run(fake)
    assert fake.train(f"train.py --run a --fold 0 {word}") == 0
    assert not (fake.working / "runs").exists() and "--resume" not in fake.noted()[0]["words"]


def test_a_run_of_the_working_folder_goes_on_there(fake):
    attach_run(fake)
    own = fake.working / "runs" / "a" / "fold0"
    own.mkdir(parents=True)
    (own / "args.yaml").write_text("seed: 42\n")
    (own / "last.pt").write_text("own")
    assert fake.train("train.py --run a --fold 0 --resume") == 0
    assert (own / "last.pt").read_text() == "own" and fake.noted()[0]["words"].count("--resume") == 1


def test_another_run_is_not_touched(fake):
    attach_run(fake)
    assert fake.train("train.py --run b --fold 0") == 0
    assert not (fake.working / "runs").exists() and "--resume" not in fake.noted()[0]["words"]


def test_two_outputs_with_the_same_run(fake, capsys):
    one, other = attach_run(fake), attach_run(fake, "older/runs")
    assert fake.train("train.py --run a") == 2
    error = capsys.readouterr().err
    assert str(one) in error and str(other) in error and not fake.noted()


def test_a_run_that_does_not_fit_is_not_copied(fake, monkeypatch, capsys):
    run = attach_run(fake)
    monkeypatch.setattr(machine, "STOP", 10**18)
    monkeypatch.setattr(machine.Disk, "look", lambda disk: None)
    assert fake.train("train.py --run a") == 2
    assert f"{run}: " in (error := capsys.readouterr().err) and "attach less" in error
    assert not (fake.working / "runs" / "a").exists()


@pytest.mark.parametrize(("words", "values"), [
    ("train.py --fold 0 --train-folds 1 2 --lr -1", ["1", "2"]), ("train.py --train-folds=1", ["1"]),
    ("train.py --train-folds 1 --train-folds 2 3", ["2", "3"]), ("train.py --train-folds", []),
    ("train.py --x 1", None),
])  # fmt: skip
def test_values_of_an_option(words, values):
    assert calls.values_of(words.split(), "--train-folds") == values


def test_words_without_an_option():
    words = "train.py --train-folds 1 2 --run a --train-folds=3 --check".split()
    assert calls.without(words, "--train-folds") == "train.py --run a --check".split()


@pytest.mark.parametrize("text", ["", "id,path\na,b\n", "id,fold\na,first\n", "id,fold\na\n", "id,fold\na,-1\n"])
def test_folds_that_cannot_be_read_are_left_to_train(tmp_path, text):
    (tmp_path / "folds.csv").write_text(text)
    assert calls.known_folds(["train.py", "--folds", "folds.csv"], tmp_path / "none", tmp_path) is None
