"""What kernels/build.py makes of a kernel: metadata, and one script that carries the code whole and unpacks it."""

import ast
import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from kernel_folders import USER, made, refused

from common.errors import run_script
from kernels import build, payload, specs

PACK, GIT_STATE = payload.pack, payload.git_state

NAMES = {"biomass-train", "biomass-infer", "biomass-ensemble", "glacier-pretrain", "glacier-train", "glacier-infer",
         "rts-train", "rts-infer", "landslide-train", "landslide-infer"}  # fmt: skip


def constants(script: str) -> dict:
    """The constants of a generated script."""
    found = [node for node in ast.parse(script).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in found if node.targets[0].id.isupper()}


def source_of(folder: Path) -> str:
    return (folder / metadata_of(folder)["code_file"]).read_text()


def metadata_of(folder: Path) -> dict:
    return json.loads((folder / "kernel-metadata.json").read_text())


def kernel_of(folder: Path) -> dict:
    return json.loads(constants(source_of(folder))["KERNEL"])


def unpacked(script: str) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(constants(script)["PAYLOAD"]))) as packed:
        return {member.name: packed.extractfile(member).read() for member in packed}


@pytest.fixture(scope="module", autouse=True)
def one_tree():
    """Packing once is enough, and the commit is that of the beginning, whatever happens to the checkout meanwhile."""
    state, packed = GIT_STATE(), {}

    def pack(names: list[str]) -> bytes:
        key = (payload.ROOT, *names)
        packed[key] = packed.get(key) or PACK(names)
        return packed[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload, "git_state", lambda: state)
        patch.setattr(payload, "pack", pack)
        yield


@pytest.fixture(scope="module")
def all_built(tmp_path_factory) -> Path:
    """All ten kernels."""
    out = tmp_path_factory.mktemp("all")
    assert run_script(build.main, ["all", "--user", USER, "--out", str(out)]) == 0
    return out


# kernels


def test_every_kernel_is_built(all_built):
    assert {path.name for path in all_built.iterdir()} == NAMES == set(specs.kernel_names())
    slugs = set()
    for folder in all_built.iterdir():
        found, kernel = metadata_of(folder), kernel_of(folder)
        owner, slug = found["id"].split("/")
        assert owner == USER and slug == f"landfold-{folder.name}" == found["title"].lower().replace(" ", "-")
        assert (found["code_file"], found["kernel_type"], found["language"]) == (f"{slug}.py", "script", "python")
        assert found["is_private"] is True and found["enable_internet"] is False
        assert found["enable_gpu"] is True and found["machine_shape"] == "NvidiaTeslaT4"
        assert all(source.startswith(f"{USER}/") for source in found["dataset_sources"] + found["kernel_sources"])
        assert f"{USER}/landfold-wheels" in found["dataset_sources"] and found["model_sources"] == []
        assert kernel["name"] == folder.name and kernel["task"] == folder.name.split("-")[0]
        hand_in = "submission.csv" if kernel["task"] == "biomass" else "masks"
        assert kernel["hand_in"] == (None if "train" in folder.name else hand_in)
        assert kernel["time_budget"] == ("11.5h" if "train" in folder.name else "8.5h")
        assert (folder / found["code_file"]).stat().st_size < 900_000
        slugs.add(slug)
    assert len(slugs) == len(NAMES)


def test_bounds_are_those_of_the_requirements(all_built):
    lines = {line.partition("#")[0].strip() for line in (payload.ROOT / "requirements.txt").read_text().splitlines()}
    for folder in all_built.iterdir():
        packages = kernel_of(folder)["packages"]
        assert packages and set(packages) <= lines and not {"torch>=2.4", "torchvision>=0.19"} & set(packages)


def test_the_blend_is_one_kernel(all_built):
    calls = kernel_of(all_built / "biomass-ensemble")["calls"]
    assert [call[0] for call in calls] == ["infer.py", "infer.py", "ensemble.py"]
    runs = ["{run:biomass-2x2}", "{run:biomass-3x3}"]
    assert [call[call.index("--runs") + 1] for call in calls[:2]] == runs
    outs = [call[call.index("--out") + 1] for call in calls[:2]]
    assert calls[2][1:] == ["--preds", *outs, "--blend", "{find:blend.json}", "--out", "out"]


def test_the_script_carries_the_code_as_it_is(all_built):
    held = unpacked(source_of(all_built / "rts-infer"))
    assert {"train.py", "infer.py", "ensemble.py", "make_folds.py", "requirements.txt", "kernels/runtime.py",
            "kernels/check_hand_in.py",
            "common/tasks/rts.py", "recipes/rts-matrix/scales.yaml"} < held.keys()  # fmt: skip
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/", "docs/", "kernels/build"))]
    assert all(content == (payload.ROOT / name).read_bytes() for name, content in held.items())
    tracked = set(subprocess.run(["git", "ls-files", "common/*.py"], cwd=payload.ROOT, capture_output=True,
                                 text=True).stdout.split())  # fmt: skip
    assert {name for name in held if name.startswith("common/")} == {
        name for name in tracked if (payload.ROOT / name).is_file()}  # fmt: skip


def test_recipes_of_the_calls_are_carried(all_built):
    for folder in all_built.iterdir():
        held, named = unpacked(source_of(folder)), []
        for call in kernel_of(folder)["calls"]:
            named += [word for word in call if "recipes/" in word]
        assert all(word.removeprefix("{code}/") in held for word in named)
        assert named or "train" not in folder.name


def test_constants_say_what_was_built(all_built):
    found = constants(source_of(all_built / "biomass-infer"))
    content = base64.b64decode(found["PAYLOAD"])
    assert hashlib.sha256(content).hexdigest() == found["CHECKSUM"]
    commit = payload.git_state()["commit"]
    assert found["COMMIT"].split("-")[0] == commit and f"+{commit}" in found["VERSION"]
    kernel = json.loads(found["KERNEL"])
    assert (kernel["version"], kernel["commit"]) == (found["VERSION"], found["COMMIT"])


def test_the_same_tree_gives_the_same_bytes(all_built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(payload, "pack", PACK)
    before = os.umask(0o077)
    try:
        again = made(tmp_path / "again", "biomass-infer")
    finally:
        os.umask(before)
    assert source_of(again) == source_of(all_built / "biomass-infer")


def test_words_are_added_to_the_main_calls(tmp_path):
    words = ["--", "--config", "recipes/biomass-grid3x3.yaml", "--run", "biomass-3x3", "--epochs", "5"]
    (call,) = kernel_of(made(tmp_path / "a", "biomass-train", *words))["calls"]
    assert call == ["train.py", "--config", "{code}/recipes/biomass-grid3x3.yaml", "--run", "biomass-3x3", "--epochs",
                    "5"]  # fmt: skip
    calls = kernel_of(made(tmp_path / "b", "biomass-ensemble", "--", "--fold", "0"))["calls"]
    assert [call[-2:] == ["--fold", "0"] for call in calls] == [True, True, False]
    words = ["--", "--tta", "hflip", "--runs={run:mine}", "--batch-size", "2"]
    (call,) = kernel_of(made(tmp_path / "c", "biomass-infer", *words))["calls"]
    assert call == ["infer.py", "--out", "preds/biomass-2x2", "--allow-bad-images", *words[1:]], (
        "no run but that asked for"
    )


def test_what_is_attached(tmp_path):
    options = ["--attach", "other/old-run", "--attach-kernel", f"{USER}/landfold-glacier-train"]
    found = metadata_of(made(tmp_path / "a", "glacier-train", *options))
    assert found["dataset_sources"] == [f"{USER}/landfold-glacier-data", f"{USER}/landfold-wheels", "other/old-run"]
    assert found["kernel_sources"] == [f"{USER}/landfold-glacier-pretrain", f"{USER}/landfold-glacier-train"]
    options = ["--data-set", "a/b", "--data-set", "{user}/c", "--competition", "x", "--time-budget", "30m"]
    folder = made(tmp_path / "b", "biomass-infer", *options)
    found = metadata_of(folder)
    assert found["dataset_sources"] == ["a/b", f"{USER}/c"] and found["competition_sources"] == ["x"]
    assert kernel_of(folder)["time_budget"] == "30m"
    folder = made(tmp_path / "c", "biomass-infer", "--competition", "none", "--time-budget", "none")
    assert metadata_of(folder)["competition_sources"] == [] and kernel_of(folder)["time_budget"] is None


def test_another_title_is_another_kernel(tmp_path):
    found = metadata_of(made(tmp_path, "biomass-train", "--title", "Landfold biomass train 3x3"))
    assert (found["id"], found["code_file"]) == (f"{USER}/landfold-biomass-train-3x3", "landfold-biomass-train-3x3.py")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "KERNEL: name one"),
        (["biomass"], "biomass: no such kernel; there are biomass-ensemble"),
        (["biomass-infer", "--atach", "a/b"], "unknown option --atach; did you mean --attach"),
        (["biomass-infer", "--attach", "b"], "data set b: give OWNER/SLUG"),
        (["biomass-infer", "--attach-kernel", "a/B C"], "kernel a/B C: give OWNER/SLUG"),
        (["biomass-infer", "--time-budget", "long"], "time budget 'long': give a time as 8.5h"),
        (["biomass-infer", "--", "--tta-views", "2"], "infer.py: unknown option --tta-views"),
        (["biomass-infer", "--", "--runs", "{mount:x}"], "unknown placeholder"),
        (["biomass-infer", "--", "--batch-size", "0"], "'0': give a whole number"),
        (["biomass-train", "--", "--config", "recipes/nothing.yaml"], "no such file"),
        (["biomass-train", "--", "--task", "rts"], "is of task rts, the kernel of biomass"),
        (["biomass-infer", "--title", "One"], "title must be text of 5 to 50"),
        (["biomass-infer", "--title", "Landfold: infer"], "letters, digits and spaces"),
        (["biomass-infer", "rts-infer", "--title", "Landfold infer"], "--title: is of one kernel"),
        (["biomass-infer", "--name", "x"], "--name: is of data sets"),
        (["biomass-infer", "--licence", "MIT"], "--licence: is of data sets"),
        (["biomass-infer", "--blend", "x"], "--blend: is of data sets"),
        (["--dataset", "folds", "f.csv", "--notebook"], "--notebook: is of kernels"),
        (["--wheels", "--", "--fold", "0"], "--: is of kernels"),
        (["biomass-infer", "--wheels"], "biomass-infer: is of kernels"),
        (["--wheels", "--dataset", "folds", "f.csv"], "--wheels: is a data set of its own"),
    ],
)
def test_wrong_words_are_told_in_one_line(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    own, further = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, [])
    assert said in refused(capsys, *own, "--user", USER, *further)
    assert not list(tmp_path.rglob("*.py"))


GOOD = {"title": "Landfold test kernel", "task": "biomass", "gpu": False, "calls": ["infer.py --runs {run:a} --out o"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"internet": True}, "unknown key 'internet'"),
        ({"title": None}, "title must be text"),
        ({"task": "moon"}, "task must be one of"),
        ({"gpu": "yes"}, "gpu must be true or false"),
        ({"hand_in": "zip"}, "hand_in must be one of submission.csv, masks or absent"),
        ({"calls": []}, "calls must be a list of calls"),
        ({"calls": "infer.py"}, "calls must be a list"),
        ({"calls": ["rm -rf ."]}, "rm -rf .: a call begins with make_folds.py"),
        ({"calls": [["train.py", "--epochs", 3]]}, "give --run NAME"),
        ({"packages": ["requests"]}, "requests is not in requirements.txt"),
        ({"datasets": ["weights"]}, "data set weights: give OWNER/SLUG"),
        ({"time_budget": "9x"}, "time budget '9x'"),
        ({"processes": 0}, "processes must be a number from 1 on"),
        ({"processes": "two"}, "processes must be a number from 1 on"),
    ],
)
def test_a_kernel_yaml_that_is_wrong_is_refused(tmp_path, capsys, monkeypatch, change, said):
    monkeypatch.setattr(specs, "KERNELS", tmp_path / "kernels")
    path = tmp_path / "kernels" / "k" / "kernel.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(GOOD | change))
    words = ["k", "--user", USER, "--out", tmp_path / "out"]
    assert said in refused(capsys, *words)
    path.write_text(yaml.safe_dump(GOOD | {"processes": 1}))
    assert run_script(build.main, list(map(str, words))) == 0
    assert kernel_of(tmp_path / "out" / "k")["processes"] == 1
    assert metadata_of(tmp_path / "out" / "k")["enable_gpu"] is False
    assert "machine_shape" not in metadata_of(tmp_path / "out" / "k")


def test_the_user_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KAGGLE_USERNAME", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert "--user: whose kernel?" in refused(capsys, "biomass-infer", "--out", tmp_path / "out")
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text('{"username": "of-file", "key": "x"}')
    assert specs.user_name(None) == "of-file"
    monkeypatch.setenv("KAGGLE_USERNAME", "of-variable")
    assert (specs.user_name(None), specs.user_name("given")) == ("of-variable", "given")
    assert "give the name as in" in refused(capsys, "biomass-infer", "--user", "a/b")


def test_a_source_that_is_too_large_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(payload, "LIMIT", 100_000)
    assert "Kaggle takes 100,000" in refused(capsys, "biomass-infer", "--user", USER, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_somebody_is_not_replaced(tmp_path, capsys):
    (tmp_path / "biomass-infer").mkdir()
    (tmp_path / "biomass-infer" / "mine.txt").touch()
    assert "was not built by this" in refused(capsys, "biomass-infer", "--user", USER, "--out", tmp_path)
    (tmp_path / "biomass-infer" / "mine.txt").rename(tmp_path / "biomass-infer" / "kernel-metadata.json")
    assert not (made(tmp_path, "biomass-infer") / "mine.txt").exists()


def test_notebooks_carry_the_same(all_built, tmp_path):
    folder = made(tmp_path, "biomass-infer", "--notebook")
    found = metadata_of(folder)
    assert (found["kernel_type"], found["code_file"]) == ("notebook", "landfold-biomass-infer.ipynb")
    (cell,) = json.loads(source_of(folder))["cells"]
    assert constants(cell["source"]) == constants(source_of(all_built / "biomass-infer"))
