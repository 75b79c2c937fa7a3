"""What the official Kaggle client sends for kernels/push.sh: each kernel and each kind of data set as it was built."""

import ast
import base64
import hashlib
import json
import re
import subprocess
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from kaggle_server import KEY, ROOT, Server, clean_checkout, git
from kernel_folders import made

# not imported here: the client looks for the credentials of whoever runs the tests when it is
pytestmark = pytest.mark.skipif(find_spec("kaggle") is None, reason="the official client is not there: kaggle")
KERNELS = sorted(path.parent.name for path in ROOT.glob("kernels/*/kernel.yaml"))
# left out of a request where they are empty
SOURCES = {"datasetDataSources": "datasets", "competitionDataSources": "competitions", "kernelDataSources": "kernels"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return clean_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Server:
    with Server(tmp_path_factory.mktemp("server") / "kept") as running:
        yield running


@pytest.fixture(autouse=True)
def no_answers(server):
    server.answers.clear()


def push(checkout: Path, server: Server, *words, cwd=None, **variables) -> subprocess.CompletedProcess:
    """kernels/push.sh of the checkout with these words, as a user of the server."""
    command = ["bash", str(checkout / "kernels" / "push.sh"), *map(str, words)]
    given = server.environment(**variables)
    return subprocess.run(command, env=given, cwd=cwd or checkout, capture_output=True, text=True, timeout=300)


def kernel_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / "kernels" / name / "kernel.yaml").read_text())


@pytest.fixture(scope="module")
def pushed(checkout, server, tmp_path_factory) -> Server:
    """The server after `push.sh all`, with the data sets that the kernels name already there."""
    (checkout / "kernels" / "__pycache__").mkdir(exist_ok=True)  # as any use of the checkout leaves it: no kernel
    for source in {source for name in KERNELS for source in kernel_yaml(name)["datasets"]}:
        server.datasets[source.removeprefix("{user}/")] = tmp_path_factory.mktemp("source")
    done = push(checkout, server, "all")
    assert done.returncode == 0, done.stdout + done.stderr
    return server


def constants(source: str) -> dict:
    """What the script gives its upper-case names."""
    return {node.targets[0].id: ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and node.targets[0].id.isupper()}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_arrives_as_it_was_built(pushed, checkout, name):
    got, wanted = pushed.kernels[f"landfold-{name}"], kernel_yaml(name)
    assert got["text"].encode() == (checkout / "build" / name / f"landfold-{name}.py").read_bytes()
    assert got["slug"] == f"{pushed.user}/landfold-{name}" and got["newTitle"] == wanted["title"]
    assert (got["language"], got["kernelType"]) == ("python", "script")
    assert got["isPrivate"] is True and got["enableInternet"] is False and got["enableGpu"] is wanted["gpu"]
    assert got["enableTpu"] is False and got["machineShape"] == "NvidiaTeslaT4"
    for key, own in SOURCES.items():
        assert got.get(key, []) == [source.replace("{user}", pushed.user) for source in wanted[own]]
    assert "modelDataSources" not in got and "dockerImage" not in got


@pytest.mark.parametrize("name", KERNELS)
def test_what_arrives_is_of_the_commit_and_whole(pushed, checkout, name):
    found = constants(pushed.kernels[f"landfold-{name}"]["text"])
    head = git(checkout, "rev-parse", "HEAD").strip()
    assert head.startswith(found["COMMIT"]) and len(found["COMMIT"]) == 12
    assert hashlib.sha256(base64.b64decode(found["PAYLOAD"])).hexdigest() == found["CHECKSUM"]
    kernel = json.loads(found["KERNEL"])
    assert kernel["name"] == name and len(kernel["calls"]) == len(kernel_yaml(name)["calls"])


def test_the_ensemble_asks_for_what_it_needs(pushed):
    assert len(KERNELS) == 10
    got = pushed.kernels["landfold-biomass-ensemble"]
    assert got["competitionDataSources"] == ["csiro-biomass"]
    assert got["datasetDataSources"] == ["learner/landfold-biomass-weights", "learner/landfold-wheels"]
    assert pushed.kernels["landfold-glacier-train"]["kernelDataSources"] == ["learner/landfold-glacier-pretrain"]


@pytest.mark.soak
def test_a_notebook_under_another_title(pushed, checkout):
    """It is a kernel of its own; the client writes a notebook's JSON anew, and its content stays."""
    options = ("--title", "Landfold biomass again", "--notebook", "--attach", "other/more-data")
    done = push(checkout, pushed, "biomass-infer", *options, "--", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    got = pushed.kernels["landfold-biomass-again"]
    book = json.loads(got["text"])
    assert got["kernelType"] == "notebook" and got["datasetDataSources"][-1] == "other/more-data"
    assert book == json.loads((checkout / "build" / "biomass-infer" / "landfold-biomass-again.ipynb").read_text())
    (call,) = json.loads(constants("".join(cell["source"] for cell in book["cells"]))["KERNEL"])["calls"]
    assert call[-2:] == ["--batch-size", "2"] and pushed.versions["landfold-biomass-again"] == 1


REFUSALS = {
    "an error beside the answer": ((200, {"ref": "", "url": "", "error": "Maximum of GPU hours reached"}), "GPU hours"),
    "not allowed": ((403, {"code": 403, "message": "Permission 'kernels.update' was denied"}), "denied"),
    "out of order": ((500, {}), "500 Server Error"),
}


def push_built(checkout, server, *names, **variables) -> subprocess.CompletedProcess:
    """push.sh of kernels that lie in build/ already: nothing is built again."""
    return push(checkout, server, *names, PYTHON="true", **variables)


@pytest.mark.parametrize("case", REFUSALS)
def test_a_push_that_the_server_refuses_is_seen(pushed, checkout, case):
    """The client itself ends with code 0 where the answer holds an error; the second kernel is not sent any more."""
    answer, said = REFUSALS[case]
    pushed.answers["SaveKernel"] = answer
    before = len(pushed.calls)
    done = push_built(checkout, pushed, "glacier-infer", "rts-infer")
    assert done.returncode == 2 and said in done.stdout
    assert re.fullmatch(r"error: kaggle kernels push: .*above\n", done.stderr)
    assert pushed.calls[before:] == ["SaveKernel"]


def test_a_second_push_is_a_second_version(pushed, checkout):
    before = pushed.versions["landfold-rts-train"]
    done = push_built(checkout, pushed, "rts-train")
    assert done.returncode == 0 and f"Kernel version {before + 1} successfully pushed" in done.stdout
    assert pushed.versions["landfold-rts-train"] == before + 1


def test_a_kernel_without_its_data_set_is_no_success(pushed, checkout, monkeypatch):
    """Kaggle saves the kernel without what it does not find: it would run in vain."""
    monkeypatch.delitem(pushed.datasets, "landfold-rts-weights")
    done = push_built(checkout, pushed, "rts-infer")
    assert done.returncode == 2 and "learner/landfold-rts-weights" in done.stdout
    assert "error: kaggle kernels push: sent without what is named above" in done.stderr


def test_a_token_does_as_well_as_a_key(pushed, checkout):
    assert push_built(checkout, pushed, "rts-infer", KAGGLE_KEY="", KAGGLE_API_TOKEN=KEY).returncode == 0
    assert pushed.calls[-2:] == ["IntrospectToken", "SaveKernel"]


def test_no_server_no_key_no_client(pushed, checkout, tmp_path):
    with Server(tmp_path / "other") as gone:
        pass
    done = push_built(checkout, gone, "rts-infer")
    assert done.returncode == 2 and "nothing was sent" in done.stderr
    done = push_built(checkout, pushed, "rts-infer", KAGGLE_KEY="wrong")
    assert done.returncode == 2 and "Authentication required" in done.stdout and "nothing was sent" in done.stderr
    before = len(pushed.calls)
    done = push_built(checkout, pushed, "rts-infer", KAGGLE_KEY="")
    assert done.returncode == 2 and "kaggle: no credentials" in done.stderr
    done = push_built(checkout, pushed, "rts-infer", PATH="/usr/bin:/bin")
    assert done.returncode == 2 and "pip install kaggle" in done.stderr
    assert pushed.calls[before:] == []


@pytest.mark.parametrize("change", ["a tracked file", "a new file", "what is staged"])
def test_a_tree_that_differs_from_its_commit_is_not_sent(pushed, checkout, change):
    path = checkout / ("notes.txt" if change == "a new file" else "infer.py")
    before, sent = path.read_text() if path.exists() else None, len(pushed.calls)
    try:
        path.write_text((before or "") + "# changed\n")
        if change == "what is staged":
            git(checkout, "add", "infer.py")
        done = push_built(checkout, pushed, "rts-infer")
    finally:
        path.unlink() if before is None else path.write_text(before)
        git(checkout, "reset", "-q")
    assert done.returncode == 2 and f"({path.name})" in done.stderr and "commit" in done.stderr
    assert len(pushed.calls) == sent
    assert push_built(checkout, pushed, "rts-infer").returncode == 0  # what was changed was the only reason


WRONG_WORDS = {
    "nothing": ((), "name a kernel"),
    "options first": (("--notebook", "rts-infer"), "name the kernels first"),
    "elsewhere": (("rts-infer", "--out", "elsewhere"), "--out"),
    "elsewhere, later": (("rts-infer", "--notebook", "--out", "elsewhere"), "--out"),
    "elsewhere, in one word": (("rts-infer", "--notebook", "--out=elsewhere"), "--out"),
    "two folders": (("--dataset", "a", "b"), "--dataset: give one folder"),
    "no data set": (("--dataset", "tests"), "no dataset-metadata.json"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_words_send_nothing(pushed, checkout, case):
    words, said = WRONG_WORDS[case]
    before = len(pushed.calls)
    done = push_built(checkout, pushed, *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr
    assert done.stderr.count("\n") == 1 and pushed.calls[before:] == []


def test_what_cannot_be_built_is_not_sent(pushed, checkout):
    before = len(pushed.calls)
    done = push(checkout, pushed, "rts-infer", PYTHON="false")
    assert done.returncode != 0 and pushed.calls[before:] == []


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file of a data set but its metadata."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: held for name, held in found.items() if name != "dataset-metadata.json"}


def wheel_file(folder: Path, name: str, version: str) -> Path:
    """A wheel with nothing in it but its name, as pip takes it."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def kinds(name: str, home: Path, work: Path, monkeypatch) -> tuple:
    """Words of build.py for a data set of each kind, from small things made in `work`."""
    run = home / "runs" / "biomass-1x1-s42"
    if name == "weights":
        return "--dataset", "weights", run
    if name == "folds":
        return "--dataset", "folds", home / "data" / "folds.csv", "--name", "landfold-biomass-folds"
    if name == "encoder":
        (work / "test_vit.safetensors").write_bytes(bytes(range(256)) * 40)
        return "--dataset", "encoder", work / "test_vit.safetensors"
    wheel_file(work, "iterative_stratification", "0.1.9")
    lines = re.findall(r"^[A-Za-z][\w.-]*", (ROOT / "requirements.txt").read_text(), re.M)
    image = [f"{line} @ file:///x" for line in lines if line != "iterative-stratification"]
    (work / "image.txt").write_text("\n".join(image))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(work))
    return "--wheels", "--image", work / "image.txt", "--python", "3.11"


@pytest.mark.parametrize("kind", ["weights", "folds", "encoder", "wheels"])
def test_a_data_set_arrives_as_it_was_built(tiny_home, checkout, tmp_path, monkeypatch, kind):
    """Created at first, then a version; what a mount of it shows is what was built, sub-folders too."""
    (tmp_path / "work").mkdir()
    built = made(tmp_path / "out", *kinds(kind, tiny_home, tmp_path / "work", monkeypatch), user="learner")
    with Server(tmp_path / "kept") as server:
        done = push(checkout, server, "--dataset", built.name, cwd=built.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        assert server.calls[-1] == "CreateDataset" and list(server.datasets) == [built.name]
        about, record = json.loads((built / "dataset-metadata.json").read_text()), server.records[built.name]
        assert record["isPrivate"] is True and record["licenseName"] == about["licenses"][0]["name"]
        assert (record["title"], f"{record['ownerSlug']}/{record['slug']}") == (about["title"], about["id"])
        assert contents(server.unpack(built.name, tmp_path / "mount")) == contents(built) != {}
        (built / "more.txt").write_text("more")
        done = push(checkout, server, "--dataset", built)
        assert done.returncode == 0 and server.calls[-1] == "CreateDatasetVersion"
        notes = server.records[built.name]["version"]["versionNotes"]
        assert git(checkout, "rev-parse", "--short=12", "HEAD").strip() in notes
        assert contents(server.unpack(built.name, tmp_path / "next")) == contents(built)


def plain_set(folder: Path) -> Path:
    """A data set of a file and a sub-folder, made by hand."""
    (folder / "run" / "fold0").mkdir(parents=True)
    (folder / "run" / "fold0" / "args.yaml").write_text("a: 1\n")
    (folder / "blend.json").write_text("")
    about = {"title": "Landfold plain", "id": "learner/landfold-plain", "licenses": [{"name": "other"}]}
    (folder / "dataset-metadata.json").write_text(json.dumps(about))
    return folder


SET_REFUSALS = {
    "a name that is taken": ("CreateDataset", (200, {"status": "error", "error": "The title is in use"}), "in use"),
    "not allowed": ("CreateDataset", (403, {"code": 403, "message": "Permission was denied"}), "denied"),
    "out of order": ("CreateDataset", (500, {}), "500 Server Error"),
    "a file that does not arrive": ("upload run.zip", (400, {}), "Upload unsuccessful: run.zip"),
    "no file arrives": ("upload", (400, {}), "Upload unsuccessful: blend.json"),
}


@pytest.mark.parametrize("case", SET_REFUSALS)
def test_a_data_set_that_the_server_refuses_is_seen(checkout, server, tmp_path, case):
    call, answer, said = SET_REFUSALS[case]
    server.answers[call] = answer
    server.datasets.pop("landfold-plain", None)
    done = push(checkout, server, "--dataset", plain_set(tmp_path / "set"))
    assert done.returncode == 2 and said in done.stdout
    assert re.fullmatch(r"error: kaggle datasets create: .*\n", done.stderr)


def test_a_version_that_the_server_refuses_is_seen(checkout, server, tmp_path):
    folder = plain_set(tmp_path / "set")
    server.datasets.pop("landfold-plain", None)
    assert push(checkout, server, "--dataset", folder).returncode == 0
    server.answers["CreateDatasetVersion"] = (200, {"status": "error", "error": "Too many versions"})
    done = push(checkout, server, "--dataset", folder)
    assert done.returncode == 2 and "Too many versions" in done.stdout and "datasets version: refused" in done.stderr
