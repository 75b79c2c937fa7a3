"""--on-nan and --spike-factor, memory that runs out in training, and a last batch of one row: what is left out, what is
gone back to, and that a run which is killed meanwhile ends with the same bytes."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import moon_task
import numpy as np
import pytest
import tiny_data
import torch
import yaml
from test_engine_resume import Killed, same
from test_loop import Plane, Points, collate, squared

from common.datasets.sampling import EpochBatches, make_loader
from common.engine.bad_steps import IN_A_ROW, REWINDS, Guard, broken_weight
from common.engine.batch_size import Rehearsal
from common.engine.checkpoint import load_checkpoint
from common.engine.device import Machine
from common.engine.lone_rows import lone_row
from common.engine.loop import Trainer
from common.engine.schedule import Stage
from common.errors import InputError
from common.tasks import TASKS

CPU, NAN = Machine(torch.device("cpu")), float("nan")


class Normed(Plane):
    """A plane behind a batch norm, whose statistics a NaN would spoil for good."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.3))


class Spoils(torch.autograd.Function):
    """The number as it is, and a gradient that is none."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * NAN


# what becomes of a batch and of its loss
ILLS = {
    "loss": lambda loss: loss * NAN,
    "infinite": lambda loss: loss + float("inf"),
    "gradient": Spoils.apply,
    "leap": lambda loss: loss * 1000,
}


def make_trainer(folder, *, ill="loss", when=lambda trainer, epoch, step: False, rows=11, epochs=3, **options):
    """A trainer over eleven points in batches of three, whose loss falls ill at the steps that `when` says."""
    folder.mkdir(parents=True, exist_ok=True)
    model, step_now = Normed(), []
    loader = make_loader(Points(), EpochBatches(rows, 3, seed=5), workers=0, collate=collate)

    def loss_fn(outputs, batch):
        parts = squared(outputs, batch)
        bad = when(trainer, batch["epoch"], step_now[-1])
        return {"loss": ILLS[ill](parts["loss"])} if bad else parts

    groups = [{"params": list(part.parameters()), "lr": 0.05, "part": name, "weight_decay": 0.01}
              for name, part in (("backbone", model.backbone), ("head", model.head))]  # fmt: skip
    options = {"ema_decay": 0.9, "grad_clip": 1.0} | options
    trainer = Trainer(
        model, loader, loss_fn=loss_fn, groups=groups, stages=[Stage(epochs, {}, 0.5)], folder=folder,
        validate=lambda model, epoch: {"score": epoch / 10}, header={"spec": {}}, seed=5, machine=CPU, **options,
    )  # fmt: skip
    train_step = trainer.train_step
    trainer.train_step = lambda batch, epoch, step, steps: (
        step_now.append(step),
        train_step(batch, epoch, step, steps),
    )[1]
    return trainer


def at(*places):
    return lambda trainer, epoch, step: (epoch, step) in places


def ends_alike(one: Path, other: Path, but=("guard", "history")) -> None:
    one, other = load_checkpoint(one / "last.pt"), load_checkpoint(other / "last.pt")
    for key in sorted((one.keys() | other.keys()) - {"rng", *but}):
        assert same(one[key], other[key]), f"{key} differs"


# leaving out


@pytest.mark.parametrize("ill", ILLS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_left_out_is_one_that_never_came(tmp_path, monkeypatch, capsys, ill, accumulate):
    """Statistics, moments, average and counts of a run in which those batches were not even looked at."""
    options = {"accumulate": accumulate, "on_nan": "skip", "spike_factor": 10.0 * (ill == "leap")}
    monkeypatch.setattr("common.engine.bad_steps.ENOUGH", 3)
    trainer = make_trainer(tmp_path / "ill", ill=ill, when=at((1, 3)), **options)
    history = trainer.run()
    said = capsys.readouterr()
    assert [line["skipped"] for line in history] == [0, 1, 0]
    assert "epoch 2: 1 of" in said.out + said.err and "epoch 2, step 4, rows p" in said.out + said.err
    assert all(np.isfinite(line["train_loss"]) for line in history)
    healthy = make_trainer(tmp_path / "healthy", **options | {"on_nan": "stop", "spike_factor": 0.0})
    step, first = healthy.train_step, 3 - 3 % accumulate
    healthy.train_step = lambda batch, epoch, number, steps: (
        {} if epoch == 1 and number >= first else step(batch, epoch, number, steps)
    )
    healthy.run()
    assert healthy.global_step == trainer.global_step < 3 * -(-4 // accumulate)
    ends_alike(tmp_path / "ill", tmp_path / "healthy")


def test_an_image_that_is_nan_leaves_no_trace_in_the_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(Points, "__getitem__", poisoned(Points.__getitem__, 4))
    trainer = make_trainer(tmp_path, on_nan="skip")
    assert [line["skipped"] for line in trainer.run()] == [1, 1, 1]
    assert not broken_weight([trainer.model, trainer.evaluated], CPU)


def poisoned(get, index: int):
    def get_item(self, key):
        sample = get(self, key)
        return sample | {"image": sample["image"] * NAN} if key[1] == index else sample

    return get_item


LIMITS = {
    "one of few": (4, [2], None),
    "two of few": (4, [1, 2], "2 of the epoch's 4 steps were left out, 2 in a row"),
    "all": (1, [0], "1 of the epoch's 1 steps"),
    "a twentieth": (100, [3, 30, 50, 70, 99], None),
    "more than a twentieth": (100, [3, 30, 50, 70, 98, 99], "6 of the epoch's 100 steps were left out, 2 in a row"),
    "nine in a row": (400, [*range(9), *range(10, 19)], None),
    "ten in a row": (400, [0, 1, *range(20, 30)], "12 of the epoch's 400 steps were left out, 10 in a row"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_how_many_steps_may_be_left_out(name):
    steps, bad, said = LIMITS[name]
    guard, model = Guard("skip"), Normed()
    guard.begin_epoch(steps)

    def epoch():
        for step in range(steps):
            guard.begin_step(model)
            assert guard.judge("loss is not finite (nan)" if step in bad else "", f"step {step}") == (step in bad)

    if said is None:
        epoch()
        assert guard.end_epoch(0, False) == {"skipped": len(bad)}
        return
    with pytest.raises(InputError, match=said):
        epoch()
    assert guard.skipped == len(bad) and IN_A_ROW == 10


def test_only_a_leap_over_the_running_median_counts():
    guard = Guard("skip", spike_factor=5.0)
    values = [*np.random.default_rng(0).uniform(0.5, 1.5, 200), 4.4, 6.0, NAN, -3.0]
    wrong = [guard.wrong_loss(torch.tensor(value)) for value in values]
    assert not any(wrong[:201]) and wrong[201].startswith("loss leaps (6, ") and "last 101" in wrong[201]
    assert wrong[202] == "loss is not finite (nan)" and not wrong[203]
    assert len(guard.losses) == 101 and NAN not in guard.losses and 6.0 not in guard.losses
    early = Guard("skip", spike_factor=5.0)
    assert not any(early.wrong_loss(torch.tensor(value)) for value in (1.0, 100.0, 0.1)), "there is no median yet"
    for factor in (0.5, -1.0, float("inf"), NAN):
        with pytest.raises(InputError, match="--spike-factor"):
            Guard("skip", factor)


def test_a_scaler_leaves_its_steps_out_by_itself():
    """fp16: its first gradients overflow by design, and no limit counts them."""
    on, off = SimpleNamespace(is_enabled=lambda: True), SimpleNamespace(is_enabled=lambda: False)
    assert [Guard(mode).looks_at_gradients(off) for mode in ("stop", "skip", "rewind", "off")] == [
        False,
        True,
        True,
        False,
    ]
    assert not any(Guard(mode).looks_at_gradients(on) for mode in ("stop", "skip", "rewind"))


# going back


def lasts(rewinds: int, *places):
    """Ill at these places until the training went back so often: until the rate is low enough."""
    return lambda trainer, epoch, step: trainer.guard.rewinds < rewinds and (epoch, step) in places


@pytest.mark.parametrize("ill", ["loss", "gradient", "leap"])
@pytest.mark.parametrize("epoch, times", [(0, 1), (1, 2), (2, 3)])
def test_a_rewind_goes_on_from_the_last_epoch_with_half_the_rate(tmp_path, monkeypatch, capsys, ill, epoch, times):
    monkeypatch.setattr("common.engine.bad_steps.ENOUGH", 2)
    options = {"on_nan": "rewind", "spike_factor": 20.0 * (ill == "leap"), "save_every": 5}
    trainer = make_trainer(tmp_path / "ill", ill=ill, when=lasts(times, (epoch, 2)), **options)
    history = trainer.run()
    said = "".join(capsys.readouterr())
    for number in range(1, times + 1):
        assert f"rewind {number} of 3 to the end of epoch {epoch}, learning rate times {0.5**number:g}" in said
    assert [line["rewinds"] for line in history] == [times * (number >= epoch) for number in range(3)]
    by_hand = make_trainer(tmp_path / "by_hand", **options)
    enter = by_hand.enter_stage

    def slower(number):
        by_hand.guard.rewinds = times * (number >= epoch)
        enter(number)

    by_hand.enter_stage = slower
    assert [line["lr"] for line in by_hand.run()] == [line["lr"] for line in history]
    ends_alike(tmp_path / "ill", tmp_path / "by_hand")
    lines = [json.loads(line) for line in (tmp_path / "ill" / "log.jsonl").read_text().splitlines()]
    assert lines == history and [line["epoch"] for line in lines] == [1, 2, 3]


def test_after_three_rewinds_it_stops(tmp_path):
    trainer = make_trainer(tmp_path, when=at((1, 1)), on_nan="rewind")
    with pytest.raises(InputError, match=r"epoch 2, step 2, rows p.*, after 3 rewinds; look at"):
        trainer.run()
    assert trainer.guard.rewinds == REWINDS and load_checkpoint(tmp_path / "last.pt")["next_epoch"] == 1


@pytest.mark.parametrize("dies", [(0, 0), (1, 1), (1, 3), (2, 0), (2, 2), (3, 3)])
def test_killed_on_either_side_of_a_rewind(tmp_path, dies):
    """The rate stays low and the count goes on, whatever of it was saved when the run was killed."""
    options = {"on_nan": "rewind", "epochs": 5, "spike_factor": 50.0}
    when = lambda trainer, epoch, step: lasts(2, (1, 2))(trainer, epoch, step) or lasts(3, (3, 1))(trainer, epoch, step)  # noqa: E731
    whole = make_trainer(tmp_path / "whole", when=when, **options)
    whole.run()
    killed, met = make_trainer(tmp_path / "killed", when=when, **options), []
    step = killed.train_step

    def killing(batch, epoch, number, steps):
        met.append((epoch, number))
        if (epoch, number) == dies and (len(met) > 12 or killed.guard.rewinds or epoch != 1 or number < 2):
            raise Killed
        return step(batch, epoch, number, steps)

    killed.train_step = killing
    with pytest.raises(Killed):
        killed.run()
    again = make_trainer(tmp_path / "killed", when=when, **options)
    again.resume()
    again.run()
    ends_alike(tmp_path / "killed", tmp_path / "whole", but=("history",))
    assert [line["rewinds"] for line in again.history] == [line["rewinds"] for line in whole.history] == [0, 2, 2, 3, 3]
    assert len(again.guard.losses) == 20, "the median is of all losses since the start, on whatever side of a kill"


# weights


@pytest.mark.parametrize("mode", ["stop", "skip", "rewind"])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, mode):
    """Of a last step whose loss was still fine: no later loss would tell."""
    trainer = make_trainer(tmp_path, on_nan=mode)
    step = trainer.train_step

    def breaks(batch, epoch, number, steps):
        parts = step(batch, epoch, number, steps)
        if (epoch, number) == (1, 3):
            trainer.model.head.weight.data[0, 1] = NAN
        return parts

    trainer.train_step, validated = breaks, []
    trainer.validate = lambda model, epoch: validated.append(epoch) or {"score": epoch / 10}
    with pytest.raises(InputError, match=r"weights are not finite \(head.weight\) after epoch 2"):
        trainer.run()
    assert validated == [0] and trainer.guard.rewinds == (3 if mode == "rewind" else 0)
    for name in ("last.pt", "best.pt"):
        content = load_checkpoint(tmp_path / name)
        assert content["epoch"] == 0 and all(torch.isfinite(value).all() for value in content["state_dict"].values())


def test_a_gradient_that_is_not_finite_stops_a_run_before_it_saves(tmp_path):
    with pytest.raises(InputError, match=r"weights are not finite \(backbone.0.weight\) after epoch 3"):
        make_trainer(tmp_path, ill="gradient", when=at((2, 3)), grad_clip=0.0).run()
    assert load_checkpoint(tmp_path / "last.pt")["next_epoch"] == 2


@pytest.mark.parametrize("mode", ["stop", "skip", "rewind"])
def test_fp16_does_not_leave_out_every_step(tmp_path, monkeypatch, mode):
    """No limit counts its steps one by one, so that a run whose gradients are never finite would train nothing."""
    monkeypatch.setitem(globals(), "CPU", Machine(torch.device("cpu"), torch.float16))
    ill = lasts(9, *((epoch, step) for epoch in range(40) for step in range(4)))
    trainer = make_trainer(tmp_path, ill="gradient", when=ill, epochs=40, on_nan=mode)
    with pytest.raises(InputError, match="gradients are not finite whatever their scale .* after epoch 9"):
        trainer.run()
    assert trainer.guard.rewinds == (3 if mode == "rewind" else 0)
    few = make_trainer(tmp_path / "few", ill="gradient", when=at((0, 1), (1, 2)), on_nan=mode)
    assert len(few.run()) == 3 and 1 < few.scaler.get_scale() < 2**15


def test_numbers_beside_the_weights_may_be_infinite():
    model = Normed()
    model.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    assert broken_weight([model], CPU) == ""
    model.backbone[1].running_var[0] = NAN
    assert broken_weight([model], CPU) == "backbone.1.running_var"


def test_by_default_a_step_waits_for_the_device_as_often_as_before(tmp_path, monkeypatch):
    """Once, for the loss that is judged; no look at the gradient, no copy of the statistics."""
    waits, item = [], torch.Tensor.item
    trainer = make_trainer(tmp_path, epochs=1, grad_clip=1.0)
    batches = list(trainer.loader)
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: waits.append(1) or item(tensor))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: pytest.fail("a second look at the device"))
    trainer.optimizer.step = lambda *words: None  # AdamW's own
    trainer.model.train()
    trainer.enter_stage(0)
    for step, batch in enumerate(batches):
        trainer.train_step(batch, 0, step, 4)
    assert len(waits) == 4 and trainer.guard.buffers == []


# whole runs


@pytest.fixture
def moon(monkeypatch, tmp_path):
    """A working folder of the toy task; tile 9 of its data is NaN."""
    monkeypatch.setitem(TASKS, "moon", moon_task.TASK)
    monkeypatch.setattr("common.engine.tracking.write_curves", lambda *_, **__: None)
    moon_task.make_demo(tmp_path / "data")
    return tmp_path


def train(home, *words, run="one", code=0) -> Path:
    given = ("--task", "moon", "--data", "data", "--fold", "0", "--epochs", "3", "--device-type", "cpu", "--run", run)
    assert tiny_data.call("train", *given, *words, cwd=home) == code
    return home / "runs" / run / "fold0"


def log_of(fold: Path) -> list[dict]:
    return [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]


def test_the_option_from_the_command_line(moon, monkeypatch, capsys):
    """A NaN tile stops a run, which goes on with --on-nan skip; rewinds cannot help it."""
    tile = moon / "data" / "tiles" / "t9.npy"
    healthy = np.load(tile)
    np.save(tile, healthy * np.float32(NAN))
    fold = train(moon, code=2)
    assert "t9" in capsys.readouterr().err and not (fold / "last.pt").exists()
    train(moon, "--on-nan", "rewind", run="two", code=2)
    said = capsys.readouterr()
    assert "after 3 rewinds" in said.err and "rewind 1 of 3 to the end of epoch 0" in said.err + said.out
    fold = train(moon, "--on-nan", "skip")
    assert [line["skipped"] for line in log_of(fold)] == [1, 1, 1] and "left out; the first: " in "".join(
        capsys.readouterr()
    )
    np.save(tile, healthy)
    monkeypatch.setattr("common.engine.bad_steps.ENOUGH", 1)
    train(moon, "--spike-factor", "1.0001", "--lr", "9", run="three", code=2)
    assert "loss leaps" in capsys.readouterr().err


# memory


def fits(monkeypatch, most: int, since: int = 0, settled: int = 8) -> None:
    """From epoch `since` on a training step of more than `most` rows finds no memory; `settled` rows are measured."""
    monkeypatch.setattr(Rehearsal, "peak", lambda self, size: size)
    monkeypatch.setattr(Rehearsal, "limit", lambda self: settled)

    def loss(outputs, batch):
        if len(outputs["value"]) > most and batch["epoch"] >= since:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore of it")
        return moon_task.loss(outputs, batch)

    task = dataclasses.replace(moon_task.TASK, build_loss=lambda spec, settings: loss)
    monkeypatch.setitem(TASKS, "moon", task)


def settings_of(fold: Path) -> tuple[int, int]:
    args = yaml.safe_load((fold / "args.yaml").read_text())
    return args["batch_size"], args["accumulate"]


def test_memory_that_runs_out_halves_a_batch_of_auto(moon, monkeypatch, capsys):
    """Twice: from the first epoch's start, and the run is the one that began with those numbers."""
    fits(monkeypatch, 2)
    fold = train(moon, "--batch-size", "auto")
    said = capsys.readouterr().out
    assert "a batch of 8 rows does not fit into memory (CUDA out of memory. Tried to allocate 2.00 GiB)" in said
    assert "--batch-size 4 --accumulate 2" in said and "on with --batch-size 2 --accumulate 4" in said
    assert settings_of(fold) == (2, 4)
    ends_alike(fold, train(moon, "--batch-size", "2", "--accumulate", "4", run="given"), but=("args", "git"))
    assert load_checkpoint(fold / "last.pt")["args"]["accumulate"] == 4


@pytest.mark.parametrize("dies", [1, 2])
def test_a_run_that_was_halved_is_killed_and_resumed(moon, monkeypatch, capsys, dies):
    """From the second epoch on the rows do not fit; killed before the first halving was kept, or after it."""
    fits(monkeypatch, 4, since=1)
    words = ("--batch-size", "auto", "--accumulate", "3", "--epochs", "4")
    whole = train(moon, *words, run="whole")
    assert settings_of(whole) == (4, 6) and capsys.readouterr().out.count("does not fit into memory") == 1
    train_step = Trainer.train_step

    def killing(trainer, batch, epoch, step, steps):
        if (epoch, step) == (dies, 0):
            raise Killed
        return train_step(trainer, batch, epoch, step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killing)
        with pytest.raises(Killed):
            train(moon, *words, run="killed")
    fold = moon / "runs" / "killed" / "fold0"
    assert settings_of(fold) == ((8, 3) if dies == 1 else (4, 6))
    train(moon, *words, "--resume", run="killed")
    assert settings_of(fold) == (4, 6)
    ends_alike(fold, whole, but=("args", "git"))
    assert (fold / "oof.csv").read_bytes() == (whole / "oof.csv").read_bytes()


def test_a_size_that_was_given_is_not_halved(moon, monkeypatch, capsys):
    fits(monkeypatch, 2)
    fold = train(moon, "--batch-size", "6", code=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: runs/one/fold0: a batch of 6 rows does not fit into memory (CUDA out of memory.")
    assert "start over with --batch-size 3 --accumulate 2 --force, or --resume --batch-size auto" in error
    train(moon, "--resume", "--batch-size", "auto", "--epochs", "1")
    assert settings_of(fold) == (1, 4)
    fits(monkeypatch, 0)
    train(moon, "--batch-size", "auto", "--force", code=2)
    assert "take a smaller --crop or model" in capsys.readouterr().err


def test_other_errors_are_not_taken_for_memory(moon, monkeypatch):
    def breaks(*words):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "train_step", breaks)
    train(moon, code=70)


# a last batch of one row


class Deep(torch.nn.Module):
    """Features of one pixel, as an encoder leaves them of a small crop."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4))
        self.deep, self.head = torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 1)

    def forward(self, x):
        features = self.backbone(x.reshape(-1, 1, 1, 3)).amax((2, 3), keepdim=True)
        return self.head(self.deep(features).flatten(1))


def deep_trainer(folder, rows: int, size: int):
    model = Deep()
    groups = [{"params": list(model.parameters()), "lr": 0.01, "part": "head", "weight_decay": 0.0}]
    return Trainer(
        model, make_loader(Points(), EpochBatches(rows, size, seed=5), workers=0, collate=collate), loss_fn=squared,
        groups=groups, stages=[Stage(2, {})], folder=folder, validate=lambda *_: {"score": 0.1}, header={"spec": {}},
        seed=5, machine=CPU,
    )  # fmt: skip


def test_a_last_batch_of_one_row_is_trained_with_the_statistics_so_far(tmp_path):
    """Seven rows in batches of three: the last row counts; its features, of one pixel each, make no statistics."""
    trainer, seen = deep_trainer(tmp_path, 7, 3), []
    trainer.model.deep.register_forward_hook(lambda norm, x, y: seen.append((len(y), norm.training)))
    trainer.run()
    assert seen == [(3, True), (3, True), (1, False)] * 2 and trainer.global_step == 6 and trainer.model.deep.training
    assert trainer.model.deep.num_batches_tracked == 4 and trainer.model.backbone[1].num_batches_tracked == 6
    assert not trainer.model.deep._forward_pre_hooks


def test_batches_of_one_row_each_are_refused_in_a_line(tmp_path):
    with pytest.raises(InputError, match="give a larger --batch-size or --crop"):
        deep_trainer(tmp_path, 3, 1).run()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        deep_trainer(tmp_path, 3, 1).model.train()(torch.ones(1, 3))


def test_rows_that_have_statistics_are_left_alone():
    """A row of several pixels, batches of more rows, and the sum over processes, which must not lose one of them."""
    for norm, shape, rows in ((torch.nn.BatchNorm2d(4), (1, 4, 2, 1), 1), (torch.nn.BatchNorm2d(4), (2, 4, 1, 1), 2)):
        with lone_row(norm, rows, seldom=True):
            norm(torch.rand(shape))
            assert norm.training
        assert norm.num_batches_tracked == 1
    norm = torch.nn.SyncBatchNorm(4)
    with lone_row(norm, 1, seldom=True):
        assert not norm._forward_pre_hooks


# several processes


def by_rank(rank: int, folder: str, port: int, mode: str) -> None:
    """One of two processes, in which the second alone meets a bad loss, gradient or weight."""
    import os

    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ill = lambda trainer, epoch, step: rank == 1 and lasts(1, (0, 2), (2, 1))(trainer, epoch, step)  # noqa: E731
    own = Path(folder) / f"rank{rank}" if mode == "skip" else Path(folder)
    trainer = make_trainer(own, when=ill, on_nan=mode, accumulate=2, spike_factor=1e6)
    trainer.machine = Machine(torch.device("cpu"), None, rank, 2)
    trainer.guard.world = 2
    trainer.loader = make_loader(Points(), EpochBatches(11, 4, seed=5, rank=rank, world=2), workers=0, collate=collate)
    trainer.run()
    torch.save({"model": trainer.model.state_dict(), "history": trainer.history, "guard": trainer.guard.state_dict()},
               Path(folder) / f"{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["skip", "rewind"])
def test_two_processes_leave_out_and_go_back_together(tmp_path, mode):
    from children import free_port

    torch.multiprocessing.spawn(by_rank, (str(tmp_path), free_port(), mode), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    weights = [name for name, _ in Normed().named_parameters()]  # statistics are each process's own on a CPU
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in weights)
    assert one["guard"] == two["guard"]
    key, wanted = ("skipped", [1, 0, 1]) if mode == "skip" else ("rewinds", [1, 1, 1])
    assert [line[key] for line in one["history"]] == [line[key] for line in two["history"]] == wanted
