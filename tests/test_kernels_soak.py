"""The long form: what the official client sent of each of the ten kernels runs offline, with several processes, after
a kill, with the oldest versions of the libraries."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kaggle_sets
import kaggle_stand_in
import numpy as np
import pytest
import tiny_data
import tiny_landslide
import tiny_rts
import tiny_tiles
import torch
from kaggle_kernels import USER, attached, build, script_of
from kaggle_server import Server
from kaggle_stand_in import ROOT
from packaging.version import Version
from test_engine_resume import log_of, same
from test_kernels_run import HIDDEN, SLUG, VIEWS, WEIGHTS, refused, values_of

from common.engine.checkpoint import load_checkpoint
from common.outputs.masks import read_probs

pytestmark = pytest.mark.soak
SMALL = {"biomass": (*tiny_data.SMALL, "--freeze-epochs", "1"), "glacier": tiny_tiles.SMALL, "rts": tiny_rts.SMALL,
         "landslide": tiny_landslide.SMALL}  # fmt: skip
EPOCHS = ("--epochs", "2")
# task -> its small public set, the hidden one, the words of its infer kernel and where its data is attached
TASKS = {
    "biomass": {"make": tiny_data.make_tiny, "hide": kaggle_sets.hide_photos, "names": HIDDEN,
                "run": "biomass-2x2", "words": VIEWS, "data": {"competitions": SLUG}},
    "glacier": {"make": tiny_tiles.make_tiles, "hide": kaggle_sets.hide_tiles, "names": ["05_01", "05_02", "img009"],
                "run": "glacier-ba", "words": ("--tta", "hflip", "vflip", "rot90", "--min-area", "100", "100", "20",
                "--fill-holes", "50"), "data": {"data_sets": "landfold-glacier-data"}},
    "rts": {"make": tiny_rts.make_rts, "hide": kaggle_sets.hide_slumps, "names": ["zz1", "zz2", "zz3"],
            "run": "rts", "words": (), "data": {"data_sets": "landfold-rts-data"}},
    "landslide": {"make": tiny_landslide.make_hills, "hide": kaggle_sets.hide_hills, "names": ["far", "away"],
                  "run": "landslide-v25", "words": ("--crf", "--thresholds", "production"),
                  "data": {"data_sets": "landfold-landslide-data"}},
}  # fmt: skip
LAYOUT = {"biomass": "typed", "glacier": "flat", "rts": "models", "landslide": "typed"}


@pytest.fixture(scope="module", autouse=True)
def offline():
    if why := kaggle_stand_in.why_not():
        pytest.skip(why)


class Account:
    """A user of Kaggle with a clean checkout: sends what is built of it, and gets back what the server received."""

    def __init__(self, home: Path, server: Server):
        self.home, self.server, self.checkout, self.count = home, server, home / "checkout", 0
        tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.checkout / name)
        identity = ("-c", "user.name=learner", "-c", "user.email=learner@example.org")
        for words in (("init", "-q"), ("add", "-A", "-f"), (*identity, "commit", "-q", "-m", "all")):
            subprocess.run(["git", "-C", self.checkout, *words], check=True)

    def push(self, *words) -> None:
        command = ["bash", str(self.checkout / "kernels" / "push.sh"), *map(str, words)]
        environment = self.server.environment(PYTHON=sys.executable)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def folder(self) -> Path:
        self.count += 1
        made = self.home / str(self.count)
        made.mkdir()
        return made

    def kernel(self, name: str, *options) -> Path:
        """The code of a kernel, pushed with these options of build.py, as the server received it."""
        self.push(name, *options)
        received = self.server.kernels[f"landfold-{name}"]
        path = self.folder() / ("kernel.ipynb" if received["kernelType"] == "notebook" else "kernel.py")
        path.write_text(received["text"])
        return path

    def data_set(self, folder: Path) -> dict[str, Path]:
        """{slug: mount} of a folder that build.py made, sent and unpacked as Kaggle does."""
        self.push("--dataset", folder)
        return {folder.name: self.server.unpack(folder.name, self.folder() / "mount")}

    def own_data(self, slug: str) -> None:
        """The server knows a data set of this name: the user's data, which no test sends."""
        self.server.datasets.setdefault(slug, self.folder())
        self.server.records.setdefault(slug, {})


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    home = tmp_path_factory.mktemp("account")
    with Server(home / "server", user=USER) as server:
        made = Account(home, server)
        for slug in ("wheels", "encoders", "hkh-slices", *(f"{task}-data" for task in TASKS)):
            made.own_data(f"landfold-{slug}")
        yield made


def run(script: Path, home: Path, mounts: dict[str, Path], **more) -> kaggle_stand_in.Ended:
    """A kernel that must end well."""
    done = kaggle_stand_in.run(script, home, mounts, **more)
    assert done.code == 0, done.said
    return done


def public_of(task: str, home: Path) -> Path:
    """The competition's public files, with folds beside them where the data is the user's own."""
    TASKS[task]["make"](home / "public")
    if task in ("glacier", "landslide"):
        words = ("--task", task, "--data", "public", "--folds", "2")
        assert tiny_data.call("make_folds", *words, cwd=home) == 0
    return home / "public"


def trained(task: str, account: Account, home: Path, public: Path, python=sys.executable) -> Path:
    """The run that the task's training kernels make of the public files: runs/<run> of what the last one leaves."""
    words = ("--", *SMALL[task], *EPOCHS)
    mounts = attached(LAYOUT[task], **{kind: {slug: public} for kind, slug in TASKS[task]["data"].items()})
    if task == "glacier":
        slices = attached("flat", data_sets={"landfold-hkh-slices": tiny_tiles.make_slices(home / "slices")})
        done = run(account.kernel("glacier-pretrain", *words), home / "pretrain", slices, python=python)
        mounts |= attached("flat", kernels={"landfold-glacier-pretrain": done.working})
    if task == "biomass":  # the competition has no folds: they are a data set of ours
        assert tiny_data.call("make_folds", "--data", "public", "--folds", "2", "--out", "folds.csv", cwd=home) == 0
        folds = account.data_set(build(home / "built", "--dataset", "folds", home / "folds.csv"))
        mounts |= attached(LAYOUT[task], data_sets=folds)
        words = (*words, "--folds", "{find:folds.csv}")
    done = run(account.kernel(f"{task}-train", *words), home / "train", mounts, python=python)
    assert [path.name for path in done.working.iterdir()] == ["runs"]  # what is computed once stays out of the output
    return done.working / "runs" / TASKS[task]["run"]


def infer(task: str, home: Path, run: Path, data: Path) -> Path:
    """preds/own of infer.py on the run itself, in this process."""
    words = ("--task", task, "--runs", run, "--data", data, *TASKS[task]["words"], "--out", "preds/own")
    assert tiny_data.call("infer", *words, cwd=home) == 0
    return home / "preds" / "own"


def check_handed_in(task: str, done: kaggle_stand_in.Ended, own: Path, rtol=1e-5) -> None:
    """What the kernel handed in is what infer.py wrote: values, or masks and the probabilities they are made of."""
    if task == "biomass":
        found, expected = values_of(done.working / "submission.csv"), values_of(own / "submission.csv")
        assert list(found.index) == list(expected.index) and len(found) == 5 * len(HIDDEN)
        np.testing.assert_allclose(found["target"], expected["target"], rtol=rtol)
        return
    names = sorted(path.name for path in (own / "masks").iterdir())
    assert names and names == sorted(path.name for path in (done.working / "masks").iterdir())
    for name in names if rtol == 1e-5 else []:
        assert (done.working / "masks" / name).read_bytes() == (own / "masks" / name).read_bytes()
    probs = sorted((own / "prob").glob("*.npz"))
    assert len(probs) == len(names)
    for path in probs:  # stored as float16
        (found,) = (done.working / "preds").glob(f"*/prob/{path.name}")
        np.testing.assert_allclose(read_probs(found), read_probs(path), rtol=max(rtol, 2**-10), atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_from_training_to_hand_in(account, tmp_path, task):
    """The training kernels and, of weights made of their output, the infer kernel: pushed, received, run offline."""
    public = public_of(task, tmp_path)
    made = trained(task, account, tmp_path, public)
    hidden = TASKS[task]["hide"](public, tmp_path / "hidden", names=TASKS[task]["names"])
    weights = account.data_set(build(tmp_path / "built", "--dataset", "weights", made))
    data = {kind: {slug: hidden} for kind, slug in TASKS[task]["data"].items()}
    data["data_sets"] = data.get("data_sets", {}) | weights
    done = run(account.kernel(f"{task}-infer"), tmp_path / "infer", attached(LAYOUT[task], **data))
    check_handed_in(task, done, infer(task, tmp_path, made, hidden))


@pytest.fixture(scope="module")
def blended(tmp_path_factory) -> Path:
    """A working folder: runs/biomass-2x2 and biomass-3x3, their blend.json, hidden/, and in built/ their data set."""
    home = tmp_path_factory.mktemp("blended")
    tiny_data.make_tiny(home / "data")
    assert tiny_data.call("make_folds", "--data", "data", "--folds", "2", cwd=home) == 0
    found = [tiny_data.train(home, "--run", f"biomass-{grid}", "--seed", seed)
             for grid, seed in (("2x2", "42"), ("3x3", "7"))]  # fmt: skip
    words = ("--data", "data", "--save-blend", "blend.json", "--kind", "mean", "--no-report")
    assert tiny_data.call("ensemble", "--runs", *found, *words, cwd=home) == 0
    kaggle_sets.hide_photos(home / "data", home / "hidden", names=HIDDEN)
    build(home / "built", "--dataset", "weights", *found, "--blend", home / "blend.json")
    return home


def mounts_of(home: Path, hidden: Path | None = None, weights: Path | None = None) -> dict[str, Path]:
    return attached("typed", competitions={SLUG: hidden or home / "hidden"},
                    data_sets={WEIGHTS: weights or home / "built" / WEIGHTS})  # fmt: skip


def test_the_ensemble_kernel_is_infer_twice_and_a_blend(account, blended, tmp_path):
    weights = account.data_set(blended / "built" / WEIGHTS)
    script = account.kernel("biomass-ensemble", "--notebook")
    done = run(script, tmp_path / "home", mounts_of(blended, weights=weights[WEIGHTS]))
    found = [f"biomass-{grid}" for grid in ("2x2", "3x3")]
    for name in found:
        words = ("--runs", name, "--data", "hidden", *VIEWS, "--out", f"preds/{name}")
        assert tiny_data.call("infer", *words, cwd=blended) == 0
    words = ("--blend", "blend.json", "--data", "hidden", "--out", "own")
    assert tiny_data.call("ensemble", "--preds", *(f"preds/{name}" for name in found), *words, cwd=blended) == 0
    own, handed = values_of(blended / "own" / "submission.csv"), values_of(done.working / "submission.csv")
    np.testing.assert_allclose(handed["target"], own["target"], rtol=1e-5)
    single = values_of(blended / "preds" / found[0] / "submission.csv")
    assert not np.allclose(single["target"], own["target"], rtol=1e-3)
    order = [done.said.index(text) for text in ("call 1 of 3", "handed in", "call 2 of 3", "call 3 of 3")]
    assert order == sorted(order)  # the first member is handed in before the second is begun


THREADS = {"OMP_NUM_THREADS": "1"}  # sums of another number of threads differ in the last bit
TRAINED = ("--", *tiny_data.SMALL, "--freeze-epochs", "2", "--epochs", "10", "--folds", "{find:folds.csv}")


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> dict:
    """The built training kernel of two folds, its mounts, and the run that it makes when nobody stops it."""
    home = tmp_path_factory.mktemp("training")
    public = tiny_data.make_tiny(home / "public")
    assert tiny_data.call("make_folds", "--data", "public", "--folds", "2", "--out", "folds.csv", cwd=home) == 0
    script = script_of(build(home / "built", "biomass-train", *TRAINED))
    folds = build(home / "built", "--dataset", "folds", home / "folds.csv")
    mounts = attached("typed", competitions={SLUG: public}, data_sets={folds.name: folds})
    whole = run(script, home / "whole", mounts, variables=THREADS)
    return {"script": script, "mounts": mounts, "run": whole.working / "runs" / "biomass-2x2"}


def killed(training: dict, home: Path, mounts: dict, epochs: int) -> Path:
    """What /kaggle/working holds when the kernel is killed as soon as it has said the end of so many epochs."""
    kernel = kaggle_stand_in.start(training["script"], home, mounts, variables=THREADS)
    try:
        while len(re.findall("^epoch ", (home / "said.txt").read_text(), re.M)) < epochs:
            assert kernel.poll() is None, (home / "said.txt").read_text()
            time.sleep(0.02)
    finally:
        kernel.kill()
        kernel.wait()
    return home / "working"


def check_same_run(found: Path, whole: Path) -> None:
    """Both folds ended with the same bytes: weights, state of the training, history, out-of-fold predictions."""
    for fold in ("fold0", "fold1"):
        for name in ("last.pt", "best.pt"):
            one, other = load_checkpoint(found / fold / name), load_checkpoint(whole / fold / name)
            for key in sorted((set(one) | set(other)) - {"args", "git", "rng"}):
                assert same(one[key], other[key]), f"{fold}/{name}: {key} differs"
        assert log_of(found / fold) == log_of(whole / fold) and len(log_of(found / fold)) == 10
        assert (found / fold / "oof.csv").read_bytes() == (whole / fold / "oof.csv").read_bytes()
    assert (found / "post.json").read_bytes() == (whole / "post.json").read_bytes()


def test_killed_and_started_again_with_its_output_attached(training, tmp_path):
    """Killed amid the first fold, and again amid the second: the last kernel leaves what one never killed leaves."""
    first = killed(training, tmp_path / "first", training["mounts"], 5)
    assert (first / "runs/biomass-2x2/fold0/last.pt").is_file()
    assert not (first / "runs/biomass-2x2/fold0/finished.json").exists()
    mounts = training["mounts"] | attached("flat", kernels={"landfold-biomass-train": first})
    second = killed(training, tmp_path / "second", mounts, 10)
    assert (second / "runs/biomass-2x2/fold0/finished.json").is_file()
    assert not (second / "runs/biomass-2x2/fold1/finished.json").exists()
    mounts = training["mounts"] | attached("flat", kernels={"landfold-biomass-train": second})
    done = run(training["script"], tmp_path / "third", mounts, variables=THREADS)
    assert "goes on" in done.said and 1 <= len(re.findall("^epoch ", done.said, re.M)) <= 6
    check_same_run(done.working / "runs" / "biomass-2x2", training["run"])


def test_no_time_for_an_epoch_and_started_again(training, tmp_path):
    """The kernel ends well, says how to go on, and from its output the training goes on to the same bytes."""
    short = script_of(build(tmp_path / "built", "biomass-train", "--time-budget", "60s", *TRAINED))
    first = run(short, tmp_path / "first", training["mounts"], variables=THREADS)
    assert "is not finished" in first.said and "--attach-kernel" in first.said and "Traceback" not in first.said
    assert not re.findall("^epoch ", first.said, re.M)
    mounts = training["mounts"] | attached("flat", kernels={"landfold-biomass-train": first.working})
    done = run(training["script"], tmp_path / "second", mounts, variables=THREADS)
    check_same_run(done.working / "runs" / "biomass-2x2", training["run"])


def test_two_processes_train_what_one_trains(training, tmp_path):
    """A process a fold: the same bytes. One fold: they share its batches."""
    two = {"variables": THREADS | {"LANDFOLD_PROCESSES": "2"}}
    done = run(training["script"], tmp_path / "home", training["mounts"], **two)
    assert "\nfold 0 | epoch " in done.said and "\nfold 1 | epoch " in done.said
    check_same_run(done.working / "runs" / "biomass-2x2", training["run"])
    one = script_of(build(tmp_path / "built", "biomass-train", *TRAINED, "--fold", "0"))
    done = run(one, tmp_path / "one", training["mounts"], **two)
    assert "2 processes" in done.said and (done.working / "runs/biomass-2x2/fold0/finished.json").is_file()


def ranks_of(mark: str) -> set[str]:
    """RANK of every running process whose environment holds MARK=<mark>."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has just ended
            given = dict(line.partition("=")[::2] for line in path.read_bytes().decode(errors="replace").split("\0"))
            found |= {given["RANK"]} if given.get("MARK") == mark and "RANK" in given else set()
    return found


def test_two_processes_hand_in_what_one_hands_in(blended, tmp_path):
    script, handed, seen = script_of(build(tmp_path / "built", "biomass-infer")), [], {}
    for count in ("1", "2"):
        home, given = tmp_path / count, {"LANDFOLD_PROCESSES": count, "MARK": str(tmp_path / count)}
        kernel, seen[count] = kaggle_stand_in.start(script, home, mounts_of(blended), variables=given), set()
        while kernel.poll() is None:
            seen[count] |= ranks_of(given["MARK"])
            time.sleep(0.2)
        done = kaggle_stand_in.wait(kernel, home)
        assert done.code == 0, done.said
        handed.append(values_of(done.working / "submission.csv"))
        assert json.loads((done.working / "preds/biomass-2x2/spec.json").read_text())["runs"][0]["folds"] == ["0", "1"]
    assert seen == {"1": set(), "2": {"0", "1"}}
    assert list(handed[0].index) == list(handed[1].index) and len(handed[0]) == 5 * len(HIDDEN)
    np.testing.assert_allclose(handed[0]["target"], handed[1]["target"], rtol=1e-5)


def test_an_unreadable_image_is_answered_and_said(blended, tmp_path):
    hidden = shutil.copytree(blended / "hidden", tmp_path / "hidden")
    (hidden / "test" / "IDz9.jpg").write_bytes(b"no photo")
    done = run(script_of(build(tmp_path / "built", "biomass-infer")), tmp_path / "home", mounts_of(blended, hidden))
    assert "IDz9" in done.said and "Traceback" not in done.said
    values = values_of(done.working / "submission.csv")["target"]
    assert len(values) == 5 * len(HIDDEN) and np.isfinite(values).all() and (values >= 0).all()


def no_rows(hidden: Path) -> tuple[str, ...]:
    kaggle_sets.write_asked(hidden, [])
    return "test.csv", "no rows"


def id_twice(hidden: Path) -> tuple[str, ...]:
    kaggle_sets.write_asked(hidden, [*HIDDEN, "IDz9"])
    return "test.csv", "IDz9", "2 times"


@pytest.mark.parametrize("spoil", [no_rows, id_twice])
def test_a_test_set_that_cannot_be_answered(blended, tmp_path, spoil):
    hidden = shutil.copytree(blended / "hidden", tmp_path / "hidden")
    said = spoil(hidden)
    script = script_of(build(tmp_path / "built", "biomass-infer"))
    refused(kaggle_stand_in.run(script, tmp_path / "home", mounts_of(blended, hidden)), *said)


def test_a_checkpoint_of_another_format(blended, tmp_path):
    weights = shutil.copytree(blended / "built" / WEIGHTS, tmp_path / "weights")
    (path,) = (weights / "biomass-2x2" / "fold1").glob("*.pt")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"format": content["format"] + 1}, path)
    script = script_of(build(tmp_path / "built", "biomass-infer"))
    done = kaggle_stand_in.run(script, tmp_path / "home", mounts_of(blended, weights=weights))
    refused(done, f"fold1/{path.name}", "format")


def test_ten_thousand_rows_within_a_short_time(blended, tmp_path):
    """Whatever is dropped on a slow machine: every row has an answer, and the kernel ends well."""
    hidden, names = tmp_path / "hidden", [f"IDm{number}" for number in range(10_000)]
    kaggle_sets.hide_photos(blended / "data", hidden, names=["first"], size=(32, 64))
    for name in names:
        os.link(hidden / "test" / "first.jpg", hidden / "test" / f"{name}.jpg")
    kaggle_sets.write_asked(hidden, names)
    script = script_of(build(tmp_path / "built", "biomass-infer", "--time-budget", "4m", "--", "--batch-size", "64"))
    done = run(script, tmp_path / "home", mounts_of(blended, hidden))
    values = values_of(done.working / "submission.csv")["target"]
    assert len(values) == 5 * len(names) and np.isfinite(values).all()


@pytest.fixture(scope="module")
def oldest() -> Path:
    """Python of an environment with the lower bounds of requirements.txt, or a skip with the reason."""
    python = Path(os.environ.get("LANDFOLD_OLDEST", ROOT / ".venv-oldest/bin/python"))
    if not python.is_file():
        pytest.skip(f"no environment of the oldest versions: {python} (make soak makes it, or set LANDFOLD_OLDEST)")
    return python


def versions_of(python: Path, names: list[str]) -> dict[str, Version]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    return {name: Version(text) for name, text in json.loads(done.stdout).items()}


def test_the_oldest_versions_are_the_lower_bounds(oldest):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    bounds = dict(re.match(r"([\w.-]+)>=([\d.]+)", line).groups() for line in lines if not line.startswith("#"))
    for name, version in versions_of(oldest, list(bounds)).items():
        bound = Version(bounds[name])
        assert version >= bound and version.release[:2] == (*bound.release, 0)[:2], f"{name} {version}"


@pytest.mark.parametrize("task", TASKS)
def test_the_oldest_versions_do_what_the_newest_do(oldest, account, tmp_path, task):
    """Trained and predicted by kernels in the old environment; infer.py of the new one predicts much the same."""
    public = public_of(task, tmp_path)
    made = trained(task, account, tmp_path, public, python=oldest)
    hidden = TASKS[task]["hide"](public, tmp_path / "hidden", names=TASKS[task]["names"])
    weights = build(tmp_path / "built", "--dataset", "weights", made)
    data = {kind: {slug: hidden} for kind, slug in TASKS[task]["data"].items()}
    data["data_sets"] = data.get("data_sets", {}) | {weights.name: weights}
    script = script_of(build(tmp_path / "kernels", f"{task}-infer"))
    done = run(script, tmp_path / "infer", attached(LAYOUT[task], **data), python=oldest)
    check_handed_in(task, done, infer(task, tmp_path, made, hidden), rtol=1e-2)
