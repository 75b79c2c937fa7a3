"""What a generated script does before our own code is there; of a small checkout whose runtime tells what it gets."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import InputError
from kernels import payload

RUNTIME = """\
import json, os, pathlib
from common import facts
def main(kernel):
    print(json.dumps(kernel | {{"fact": facts.FACT, "here": os.getcwd(),
                               "files": sorted(map(str, pathlib.Path(__file__).parents[1].rglob("*.py")))}}))
    return {code}
"""


def stub(folder: Path, monkeypatch, *, code=0, kind="script") -> str:
    """A code file whose payload is the small checkout `folder`."""
    for name in ("common/facts.py", "kernels/runtime.py", "kernels/__init__.py", "common/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    (folder / "common" / "facts.py").write_text(f"FACT = {code!r}\n")
    (folder / "kernels" / "runtime.py").write_text(RUNTIME.format(code=code))
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    monkeypatch.setattr(payload, "ROOT", folder)
    kernel = {
        "version": "1+it's",
        "commit": "c",
        "calls": [["train.py", "--config", "{code}/recipes/x.yaml", "{run:a}"]],
    }
    return payload.write_source(kernel, "Some title", payload.pack(payload.carried_files()), kind)


def run(script: str, tmp_path: Path) -> subprocess.CompletedProcess:
    """Runs a script as Kaggle does: in another folder, with nothing on the path."""
    (tmp_path / "there").mkdir(exist_ok=True)
    (tmp_path / "tmp").mkdir(exist_ok=True)
    (tmp_path / "script.py").write_text(script)
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp")}
    return subprocess.run([sys.executable, "-I", str(tmp_path / "script.py")], cwd=tmp_path / "there", env=env,
                          capture_output=True, text=True)  # fmt: skip


@pytest.mark.parametrize("code", [0, 3])
def test_a_script_unpacks_its_code_and_makes_the_calls(tmp_path, monkeypatch, code):
    done = run(stub(tmp_path / "code", monkeypatch, code=code), tmp_path)
    assert done.returncode == code and not done.stderr
    told = json.loads(done.stdout)
    (call,) = told["calls"]
    folder = Path(call[2]).parents[1]
    assert call == ["train.py", "--config", f"{folder}/recipes/x.yaml", "{run:a}"]
    assert folder.parent == tmp_path / "tmp" and not folder.exists()
    assert len(told["files"]) == 4 and all(name.startswith(str(folder)) for name in told["files"])
    assert (told["fact"], told["here"], told["version"]) == (code, str(tmp_path / "there"), "1+it's")


@pytest.mark.parametrize("damage", [lambda text: text[:50] + ("A" if text[50] != "A" else "B") + text[51:],
                                    lambda text: text[: len(text) // 2],
                                    lambda text: text[: len(text) // 8 * 4 + 1]])  # fmt: skip
def test_a_damaged_script_says_so_and_runs_nothing(tmp_path, monkeypatch, damage):
    script = stub(tmp_path / "code", monkeypatch)
    packed = re.search(r'PAYLOAD = """\n(.*?)\n"""', script, re.S)[1]
    done = run(script.replace(packed, damage(packed)), tmp_path)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert "damaged on its way; build it again" in done.stderr and not list((tmp_path / "tmp").iterdir())


def test_a_notebook_runs_again_and_fails_loudly(tmp_path, monkeypatch, capsys):
    """In one process, beside other packages of the same names: what each of two runs finds is its own."""
    names = ("common", "kernels")
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] in names}
    path = list(sys.path)
    try:
        for code in (0, 7):
            text = stub(tmp_path / f"code{code}", monkeypatch, code=code, kind="notebook")
            notebook = json.loads(text)
            (cell,) = notebook["cells"]
            assert notebook["nbformat"] == 4 and json.dumps(notebook) == text and cell["outputs"] == []
            fails = pytest.raises(RuntimeError, match="ended with code 7") if code else contextlib.nullcontext()
            with fails:
                exec(compile(cell["source"], "cell", "exec"), {"__name__": "__main__"})
            assert json.loads(capsys.readouterr().out)["fact"] == code
        assert sys.path == path
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(kept)


def test_a_kernel_names_its_commit_and_what_it_leaves_out(tmp_path, monkeypatch):
    """A file that is not tracked is not carried; one that is gone from the tree is not either."""
    stub(tmp_path / "code", monkeypatch)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *author, "commit", "-qm", "one"], cwd=tmp_path / "code", check=True)
    state = payload.git_state()
    assert len(state["commit"]) == 12 and state["dirty"] is False
    assert (payload.left_out(), len(payload.carried_files())) == ([], 4)
    for name in ("common/new.py", "notes.txt", "kernels/build.py"):
        (tmp_path / "code" / name).write_text("")
    (tmp_path / "code" / "common" / "facts.py").unlink()
    assert payload.git_state() == state | {"dirty": True}
    assert payload.left_out() == ["common/new.py"] and "common/facts.py" not in payload.carried_files()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # wherever pytest keeps its folders
    monkeypatch.setattr(payload, "ROOT", tmp_path)
    with pytest.raises(InputError, match="not a git checkout; clone the repository"):
        payload.git_state()
