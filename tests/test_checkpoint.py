"""Checkpoints: plain, whole or absent, and never able to execute anything."""

import errno
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from safetensors.torch import save_file

import common.files
from common.engine.checkpoint import build, load_checkpoint, plain, save_checkpoint, save_external, whole_state
from common.errors import InputError
from common.tasks import TASKS
from common.torch_files import read_tensors

SPEC = {"task": "biomass"}


@pytest.fixture
def last(tiny_home) -> Path:
    return tiny_home / "runs" / "biomass-1x1-s42" / "fold0" / "last.pt"


class Evil:
    """A pickle that would leave a file behind if anything of it were executed."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    mark, path = tmp_path / "executed", tmp_path / "last.pt"
    for content in ({"format": 1, "spec": SPEC, "state_dict": Evil(mark)}, Evil(mark)):
        torch.save(content, path)
        with pytest.raises(InputError) as error:
            load_checkpoint(path)
        assert str(path) in one_line(error) and "refused" in one_line(error)
    path.write_bytes(pickle.dumps(Evil(mark)))  # without torch's container
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    assert str(path) in one_line(error)
    assert not mark.exists()


def test_a_file_that_memory_has_no_room_for_is_not_opened(tmp_path, monkeypatch):
    """Of a hole in a file nothing lies on the disk, and all of it in memory."""
    path, other = tmp_path / "last.pt", tmp_path / "last.safetensors"
    torch.save({"format": 1, "spec": SPEC}, path)
    save_file({"weight": torch.zeros(2)}, other)
    for holed in (path, other):
        with open(holed, "r+b") as file:
            file.truncate(2**32)
    monkeypatch.setattr("common.torch_files.free_memory", lambda device: 10**9)
    for name in ("load_file", "suspect"):
        monkeypatch.setattr(f"common.torch_files.{name}", lambda path: pytest.fail("opened"))
    with pytest.raises(InputError, match="its 4.3 GB do not fit into the 1.0 GB of memory that are free"):
        load_checkpoint(path)
    with pytest.raises(InputError, match="do not fit into"):
        read_tensors(other, remedy="copy it again")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path, last, share):
    path, whole = tmp_path / "last.pt", last.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="copy it again") as error:
        load_checkpoint(path)
    assert str(path) in one_line(error)


def test_strangers_files_are_refused(tmp_path, last):
    path = tmp_path / "last.pt"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(path)
    for content in ({"weight": torch.zeros(2)}, {"format": 99, "spec": SPEC}, {"format": 1}, [1, 2], torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(InputError, match="not a checkpoint of this format") as error:
            load_checkpoint(path)
        assert str(path) in one_line(error)


def test_weights_that_do_not_fit_their_spec(tmp_path, last):
    content = load_checkpoint(last)
    content["spec"]["model"]["hidden_ratio"] = 1.0
    save_checkpoint(tmp_path / "last.pt", content)
    with pytest.raises(InputError, match="do not fit") as error:
        build(tmp_path / "last.pt", TASKS)
    one_line(error)


def test_another_task_is_named(tmp_path, last):
    content = load_checkpoint(last)
    content["spec"]["task"] = "moon"
    save_checkpoint(tmp_path / "last.pt", content)
    with pytest.raises(InputError, match="task 'moon'"):
        build(tmp_path / "last.pt", TASKS)


def walk(value, where="checkpoint"):
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in (str, int), where
            yield from walk(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from walk(item, f"{where}[{position}]")
    else:
        yield where, value


def test_a_checkpoint_holds_plain_types_alone(last):
    for name in ("last.pt", "best.pt"):
        content = torch.load(last.with_name(name), weights_only=True)
        for where, value in walk(content):
            assert value is None or type(value) in (bool, int, float, str, torch.Tensor), f"{where}: {type(value)}"
        for key in ("format", "spec", "state_dict", "fold", "epoch", "score", "args", "versions", "git", "folds_hash"):
            assert key in content, f"{name} lacks {key}"


def test_plain_turns_what_it_can_and_refuses_the_rest():
    made = plain({"a": np.float32(1.5), 2: Path("x/y"), "t": (np.int64(3), torch.nn.Parameter(torch.ones(1)))})
    assert made["a"] == 1.5 and type(made["a"]) is float and made[2] == "x/y" and made["t"][0] == 3
    assert type(made["t"][1]) is torch.Tensor and not made["t"][1].requires_grad
    for value in (object(), np.zeros(2), {"deep": [set()]}):
        with pytest.raises(TypeError):
            plain(value)


def test_what_was_saved_comes_back_equal(tmp_path):
    content = {"spec": SPEC, "state_dict": {"w": torch.randn(3, 4), "n": torch.tensor(7)}, "score": 0.25}
    save_checkpoint(tmp_path / "a.pt", content)
    back = load_checkpoint(tmp_path / "a.pt")
    assert back["score"] == 0.25 and torch.equal(back["state_dict"]["w"], content["state_dict"]["w"])


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"spec": SPEC, "score": 1.0})
    old = path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "write":
        monkeypatch.setattr(torch, "save", lambda content, target: (Path(target).write_bytes(b"part"), full()))
    else:
        monkeypatch.setattr(common.files.os, "replace", full)
    with pytest.raises(InputError, match="no space left") as error:
        save_checkpoint(path, {"spec": SPEC, "score": 2.0})
    assert str(path) in one_line(error)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_really_full(small_disk):
    """torch and safetensors report a full disk each in its own way; both become one line and leave nothing behind."""
    save_checkpoint(small_disk / "last.pt", {"spec": SPEC, "score": 1.0})
    old = (small_disk / "last.pt").read_bytes()
    big = torch.randn(2**18)
    with pytest.raises(InputError, match="free disk space") as error:
        save_checkpoint(small_disk / "last.pt", {"spec": SPEC, "state_dict": {"w": big}})
    assert "last.pt" in one_line(error)
    with pytest.raises(InputError, match="free disk space"):
        save_external(small_disk, {"w": big}, "0" * 64)
    assert (small_disk / "last.pt").read_bytes() == old
    assert [path.name for path in small_disk.iterdir()] == ["last.pt"]


def test_a_frozen_backbone_is_stored_once_and_comes_back(tiny_empty):
    words = ("--freeze-backbone", "--store-views", "1", "--epochs", "1", "--run", "frozen")
    run = tiny_data.train(tiny_empty, *words)
    stored = list(run.glob("backbone-*.safetensors"))
    assert len(stored) == 1, "one file for both folds"
    keys = set()
    for fold in ("fold0", "fold1"):
        content = load_checkpoint(run / fold / "last.pt")
        assert content["external"]["file"] == stored[0].name
        assert not any(key.startswith("backbone.") for key in content["state_dict"])
        model, _ = build(run / fold / "last.pt", TASKS)
        keys.add(model.backbone_key)
        assert model.backbone_hash() == model.backbone_key == content["external"]["sha256"]
    assert len(keys) == 1
    start = tiny_data.call("train", "--data", "data", *tiny_data.QUICK, "--epochs", "1", "--fold", "0", "--run", "next",
                           "--seed", "7", "--lr", "0", "--backbone-lr", "0", "--init", "runs/frozen",
                           cwd=tiny_empty)  # fmt: skip
    assert start == 0
    taken = load_checkpoint(tiny_empty / "runs" / "next" / "fold0" / "last.pt")["state_dict"]
    whole = whole_state(run / "fold0" / "last.pt", load_checkpoint(run / "fold0" / "last.pt"), "ema")
    assert all(torch.equal(taken[key], whole[key]) for key in whole), "--init brings the frozen backbone too"
    stored[0].unlink()
    with pytest.raises(InputError, match="frozen backbone") as error:
        build(run / "fold0" / "last.pt", TASKS)
    assert stored[0].name in one_line(error)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_empty, monkeypatch, capsys):
    from common.losses import regression

    folder = tiny_empty / "runs" / "biomass-1x1-s42" / "fold0"
    calls, original = [], regression.RegressionLoss.__call__

    def poisoned(self, outputs, batch):
        calls.append(list(batch["id"]))
        parts = original(self, outputs, batch)
        return parts | {"loss": parts["loss"] * float("nan")} if len(calls) == 5 else parts

    with monkeypatch.context() as patch:
        patch.setattr(regression.RegressionLoss, "__call__", poisoned)
        code = tiny_data.call("train", "--data", "data", *tiny_data.QUICK, "--epochs", "3", "--fold", "0",
                              cwd=tiny_empty)  # fmt: skip
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and said.startswith("error: loss is not finite") and "epoch 2, step 2" in said
    assert all(name in said for name in calls[4]), "the rows of the batch are named"
    assert load_checkpoint(folder / "last.pt")["next_epoch"] == 1, "last.pt is that of the epoch before"
    assert not (folder / "finished.json").exists()
    assert tiny_data.call("train", "--data", "data", *tiny_data.QUICK, "--epochs", "3", "--fold", "0", "--resume",
                          cwd=tiny_empty) == 0  # fmt: skip


def test_use_chooses_the_weights(last):
    content = load_checkpoint(last)
    ema = build(last, TASKS, use="ema")[0].state_dict()
    own = build(last, TASKS, use="last")[0].state_dict()
    best = build(last.with_name("best.pt"), TASKS, use="best")[0].state_dict()
    name = "head.value.weight" if "head.value.weight" in own else next(key for key in own if key.startswith("head."))
    assert torch.equal(ema[name], content["ema"][name]) and torch.equal(own[name], content["state_dict"][name])
    assert not torch.equal(ema[name], own[name])
    assert torch.equal(best[name], load_checkpoint(last.with_name("best.pt"))["state_dict"][name])


def test_checkpoints_are_zip_files_without_code(last):
    with zipfile.ZipFile(last) as file:
        assert not any(name.endswith(".py") for name in file.namelist())
