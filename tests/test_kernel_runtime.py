"""A kernel that runs: what it says first, the calls it makes, what it hands in, and how it ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from fake_scripts import HANDS_IN, fake_gpus, fake_kernel

from common.engine import runs
from kernels import machine

T4, P100 = "Tesla T4", "Tesla P100-PCIE-16GB"
INFER = "infer.py --runs run --out preds/a"


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return fake_kernel(tmp_path, monkeypatch)


@pytest.mark.parametrize(("said", "state"), [(None, ("", False)), ("abc123", ("abc123", False)),
                                             ("abc123-dirty", ("abc123", True))])  # fmt: skip
def test_what_a_kernel_trains_knows_its_commit(tmp_path, monkeypatch, said, state):
    """Outside a checkout, as the code of a kernel is unpacked, runs and checkpoints name the commit all the same."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # wherever pytest keeps its folders
    monkeypatch.setattr(runs, "__file__", str(tmp_path / "common" / "engine" / "runs.py"))
    monkeypatch.delenv("LANDFOLD_COMMIT", raising=False)
    if said:
        monkeypatch.setenv("LANDFOLD_COMMIT", said)
    assert runs.git_state() == dict(zip(("sha", "dirty"), state, strict=True))


def test_machine_and_mounts_are_said_before_any_call(fake, tmp_path, monkeypatch, capsys):
    fake_gpus(tmp_path / "bin", monkeypatch, T4, T4)
    fake.make_run("datasets/me/weights", "grid")
    assert fake.run("infer.py --runs {run:grid} --out preds/a") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "fake-infer: version 1.2, commit abc123"
    assert fake.noted("infer.py")[0]["LANDFOLD_COMMIT"] == "abc123"
    assert said[1] == "GPUs: 2 (Tesla T4, 15360 MiB; Tesla T4, 15360 MiB)"
    assert said[2] == f"mount {fake.inputs / 'datasets/me/weights'}: grid/"
    assert said.index("packages: the image has what is needed") < said.index("infer.py speaks, process 0")
    assert "free disk" in said[5] and said[4].startswith("call 1 of 1: infer.py --runs /")


def test_nothing_of_it_imports_torch():
    """It would say its first line ten seconds later."""
    code = "import sys, kernels.runtime; print({'torch', 'numpy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_p100_is_refused_before_anything_runs(fake, tmp_path, monkeypatch, capsys):
    fake_gpus(tmp_path / "bin", monkeypatch, P100)
    assert fake.run(INFER) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "P100" in error and '"GPU T4 x2"' in error and "NvidiaTeslaT4" in error
    assert not fake.noted()


@pytest.mark.parametrize(("wanted", "said"), [(True, "NO GPU: the calls run on the CPU"), (False, "none is asked for")])
def test_without_a_gpu_it_goes_on_and_says_so(fake, wanted, said, capsys):
    assert fake.run(INFER, gpu=wanted) == 0
    assert said in capsys.readouterr().out and len(fake.noted()) == 1


def test_a_machine_without_the_driver_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.find_gpus() == []


def test_both_gpus_share_the_rows_and_one_process_blends(fake, tmp_path, monkeypatch, capsys):
    fake_gpus(tmp_path / "bin", monkeypatch, T4, T4)
    assert fake.run(INFER, "ensemble.py --preds preds/a --out out") == 0
    first, second = sorted(fake.noted("infer.py"), key=lambda one: one["RANK"])
    assert (first["RANK"], first["LOCAL_RANK"], second["RANK"], second["LOCAL_RANK"]) == ("0", "0", "1", "1")
    assert first["WORLD_SIZE"] == second["WORLD_SIZE"] == "2" and first["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"] and "CUDA_VISIBLE_DEVICES" not in first
    (blend,) = fake.noted("ensemble.py")
    assert "RANK" not in blend
    said = capsys.readouterr().out
    assert "infer.py speaks, process 0" in said and "process 1" not in said  # it would say everything twice


def test_a_process_that_fails_ends_the_others_with_its_code(fake, monkeypatch, capsys):
    monkeypatch.setenv("LANDFOLD_PROCESSES", "2")
    fake.script("infer.py", "print('error: no such file'); sys.exit(2) if rank else time.sleep(600)")
    assert fake.run(INFER) == 2
    said = capsys.readouterr().out
    assert "process 1 | error: no such file" in said and "infer.py ended with code 2" in said


def test_what_the_main_process_has_written_counts(fake, monkeypatch, capsys):
    """One that crashes at its end, as a library may while it is taken down, spoils no answer."""
    monkeypatch.setenv("LANDFOLD_PROCESSES", "2")
    fake.script("infer.py", f"{HANDS_IN}\nif rank: os.abort()\ntime.sleep(.5)")
    assert fake.run(INFER) == 0
    assert "a process beside the main one ended with code 134, when all was written" in capsys.readouterr().out


def test_a_main_process_that_fails_last_is_a_failure(fake, monkeypatch):
    monkeypatch.setenv("LANDFOLD_PROCESSES", "2")
    fake.script("infer.py", "time.sleep(0 if rank else .5); sys.exit(0 if rank else 70)")
    assert fake.run(INFER) == 70


def test_off_kaggle_it_says_so(fake, tmp_path, capsys):
    fake.working = tmp_path / "absent"
    assert fake.run(INFER) == 2
    assert f"{fake.working}: no such folder; a kernel runs on Kaggle" in capsys.readouterr().err


def test_only_rows_of_the_test_set_are_shared(fake, monkeypatch):
    monkeypatch.setenv("LANDFOLD_PROCESSES", "2")
    assert fake.train("infer.py --runs run --rows oof --out a", "infer.py --runs run --scene x.tif --out b") == 0
    assert [one.get("RANK") for one in fake.noted()] == [None, None]


@pytest.mark.parametrize(("gpus", "forced", "count"), [([], None, 1), ([T4, T4], None, 2), ([T4, T4], "1", 1),
                                                       ([], 3, 3)])  # fmt: skip
def test_how_many_processes(gpus, forced, count):
    assert machine.count_processes(gpus, forced) == count


@pytest.mark.parametrize(("gpus", "forced"), [([], "two"), ([], "0"), ([T4], "2")])
def test_a_number_of_processes_that_cannot_be(fake, tmp_path, monkeypatch, capsys, gpus, forced):
    fake_gpus(tmp_path / "bin", monkeypatch, *gpus)
    monkeypatch.setenv("LANDFOLD_PROCESSES", forced)
    assert fake.run(INFER) == 2
    assert capsys.readouterr().err.startswith(f"error: LANDFOLD_PROCESSES={forced}: ")


def test_the_kernel_itself_may_name_the_processes(fake):
    assert fake.run(INFER, processes=2) == 0
    assert len(fake.noted()) == 2


def test_a_kernel_that_names_more_processes_than_gpus(fake, tmp_path, monkeypatch, capsys):
    fake_gpus(tmp_path / "bin", monkeypatch, T4)
    assert fake.run(INFER, processes=2) == 2
    assert capsys.readouterr().err.startswith("error: kernel.yaml: processes 2: there are 1 GPUs")


def test_calls_run_in_the_working_folder_with_a_cache_elsewhere(fake):
    assert fake.run(INFER, "ensemble.py --preds preds/a --out out --cache kept") == 0
    one, other = fake.noted()
    assert one["cwd"] == str(fake.working) and one["words"][-2] == "--cache"
    assert not one["words"][-1].startswith(str(fake.working)) and not os.path.exists(one["words"][-1])
    assert other["words"].count("--cache") == 1 and other["words"][-1] == "kept"


def test_the_last_answer_is_what_is_handed_in(fake, capsys):
    assert fake.run(INFER, "infer.py --runs b --out preds/b", "ensemble.py --preds preds/a preds/b") == 0
    assert (fake.working / "submission.csv").read_text() == "by ensemble.py out"
    said = capsys.readouterr().out
    assert said.count("handed in: ") == 3 and f"checked biomass {fake.working} --cache" in said


def test_the_default_folder_of_an_answer_is_known(fake):
    fake.script("infer.py", HANDS_IN.replace("out.mkdir", 'out = Path("preds/grid")\n    out.mkdir'))
    assert fake.run("infer.py --runs some/where/grid other") == 0
    assert (fake.working / "submission.csv").is_file()


def test_the_check_is_told_the_data_of_the_answer(fake, capsys):
    assert fake.run(f"{INFER} --data demo") == 0
    assert f"checked biomass {fake.working} --data demo" in capsys.readouterr().out


def test_an_answer_that_is_not_valid_ends_the_kernel(fake):
    fake.script("infer.py", HANDS_IN.replace("by {name}", "wrong"))
    assert fake.run(INFER) == 2


def test_no_answer_is_an_error(fake, capsys):
    fake.script("infer.py", "")
    assert fake.run(INFER) == 2
    assert f"{fake.working / 'submission.csv'}: no call has written it" in capsys.readouterr().err


def test_masks_are_exchanged_as_a_folder(fake):
    fake.script(
        "infer.py",
        "out.mkdir(parents=True); (out / 'masks').mkdir()\n"
        "(out / 'masks' / f'{out.name}.tif').write_text('m'); (out / 'masks' / '.tmp-x').write_text('part')\n"
        "(out / 'pred.csv').write_text(out.name)",
    )
    fake.script("kernels/check_hand_in.py", "")
    assert fake.run("infer.py --runs a --out preds/a", "infer.py --runs b --out preds/b", hand_in="masks") == 0
    assert [path.name for path in (fake.working / "masks").iterdir()] == ["b.tif"]
    assert sorted(path.name for path in fake.working.iterdir()) == ["masks", "noted.jsonl", "pred.csv", "preds"]
    assert (fake.working / "pred.csv").read_text() == "b"  # the tiles that these masks are of


@pytest.mark.parametrize("code", [1, 2, 70])
def test_a_call_that_fails_ends_the_kernel_and_what_was_handed_in_stays(fake, code, capsys):
    fake.script("ensemble.py", f"{HANDS_IN}\nsys.exit({code})")
    assert fake.run(INFER, "ensemble.py --preds preds/a --out out", "ensemble.py --preds preds/a --out more") == code
    assert (fake.working / "submission.csv").read_text() == "by infer.py preds/a"
    assert len(fake.noted("ensemble.py")) == 1 and "stays as it was handed in" in capsys.readouterr().out


def test_an_unreadable_image_is_handed_in_and_ends_the_kernel(fake):
    fake.script("infer.py", f"{HANDS_IN}\nsys.exit(3)")
    assert fake.run(INFER, "infer.py --runs b --out preds/b") == 3
    assert (fake.working / "submission.csv").is_file() and len(fake.noted()) == 1


def test_a_script_that_does_not_exist(fake, capsys):
    assert fake.run("inferr.py --out x") == 2
    assert "inferr.py --out x: no such script" in capsys.readouterr().err


def budgets(fake) -> list[str | None]:
    return [dict(zip(one["words"], one["words"][1:], strict=False)).get("--time-budget") for one in fake.noted()]


def test_calls_share_the_time_of_the_kernel(fake):
    """Of 3,600 s 60 are kept for the end and 60 for the blend; what the first call leaves is the second's."""
    fake.script("infer.py", f"spend(1000)\n{HANDS_IN}")
    assert fake.run(INFER, "infer.py --runs b --out preds/b", "ensemble.py --preds preds/a --out out",
                    time_budget="1h") == 0  # fmt: skip
    assert budgets(fake) == ["1740", "2480", None]


def test_without_a_budget_nothing_is_said_of_time(fake):
    assert fake.run(INFER) == 0
    assert budgets(fake) == [None]


@pytest.mark.parametrize(("call", "budget"), [
    ("infer.py --runs a --rows oof --out preds/a", None),
    ("infer.py --runs a --scene x.tif --out preds/a", None),
    ("infer.py --runs a --rows test --out preds/a", "840"),
    ("infer.py --runs a --time-budget 5m --out preds/a", "5m"),
    ("train.py --run a --check", None),
    ("train.py --run a", "840"),
])  # fmt: skip
def test_which_calls_are_given_a_budget(fake, call, budget):
    assert fake.train(call, time_budget="900s") == 0
    assert budgets(fake) == [budget]


@pytest.mark.parametrize("budget", ["soon", "0h", "-1", ""])
def test_a_budget_that_is_no_time(fake, budget, capsys):
    assert fake.run(INFER, time_budget=budget) == 2
    assert "time_budget" in capsys.readouterr().err and not fake.noted()


ENDLESS = """
import subprocess
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # as a loader process
Path("helper").write_text(str(helper.pid))
spend(float(os.environ["SPENT"]))
time.sleep(float(os.environ["REST"]))
"""


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("before", "code"), [([], 2), ([INFER], 0)])
def test_a_call_that_outlasts_its_time_is_ended_with_all_it_started(fake, monkeypatch, capsys, before, code):
    """1,140 s are its share, 300 more are allowed; code 0 where an answer stands already."""
    monkeypatch.setenv("SPENT", "1441")
    monkeypatch.setenv("REST", "600")
    fake.script("ensemble.py", ENDLESS)
    assert fake.run(*before, "ensemble.py --out out", INFER, time_budget="20m") == code
    assert len(fake.noted("infer.py")) == len(before)
    assert not is_running(int((fake.working / "helper").read_text()))
    said = capsys.readouterr()
    assert "STOPPED: ensemble.py was still running 5 minutes after its time" in said.out
    assert ("nothing was handed in" in said.err) == (not before)
    assert ("stays as it was handed in" in said.out) == bool(before)


def test_a_call_a_little_late_is_waited_for(fake, monkeypatch):
    monkeypatch.setenv("SPENT", "1439")
    monkeypatch.setenv("REST", "0.3")
    fake.script("infer.py", f"{ENDLESS}\nhelper.kill()\n{HANDS_IN}")
    assert fake.run(INFER, time_budget="20m") == 0


def test_a_kernel_that_is_told_to_end_ends_its_calls(fake, tmp_path):
    fake.script("infer.py", "time.sleep(600)")
    named = {"name": "n", "task": "t", "version": "1", "commit": "c", "calls": [INFER.split()]}
    (tmp_path / "run.py").write_text(
        f"import sys; from pathlib import Path; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from kernels import runtime\nruntime.PAYLOAD = Path({str(fake.payload)!r})\n"
        f"kernel = {named} | {{'gpu': False, 'time_budget': None, 'hand_in': None, 'packages': [],"
        f" 'processes': None}}\n"
        f"runtime.main(kernel, inputs={str(fake.inputs)!r}, working={str(fake.working)!r})\n"
    )
    kernel = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.DEVNULL)
    while not fake.noted() and kernel.poll() is None:
        time.sleep(0.05)
    kernel.send_signal(signal.SIGTERM)
    assert kernel.wait(60) == 128 + signal.SIGTERM
    assert not is_running(fake.noted()[0]["pid"])
