"""--batch-size auto: the search against counting, memory against what is allocated, and a run against the number given.

As a script, started by torchrun: test_batch_size.py, a training by two processes of which each fits another number.
"""

import json
import mmap
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from common.engine import batch_size, memory
from common.engine.batch_size import Rehearsal, is_out_of_memory, known_batch_size, largest_size, measure_batch_size
from common.engine.checkpoint import load_checkpoint
from common.engine.device import Machine, rng_state
from common.engine.schedule import Stage
from common.errors import InputError

CPU, MB = torch.device("cpu"), 2**20


# the search


def search(peaks, *, most, budget, refuses):
    """(the answer, sizes tried in order) where a step of n rows peaks at peaks(n) bytes."""
    asked = []

    def peak(size):
        asked.append(size)
        return peaks(size) if not refuses or peaks(size) <= budget else None

    return largest_size(peak, most=most, budget=budget, refuses=refuses)[0], asked


@pytest.mark.parametrize("refuses", [True, False])
def test_the_largest_size_that_counting_finds(refuses):
    """Within a sixteenth, of peaks that rise in a straight line; without refusals not one size beyond is tried."""
    draw = random.Random(3)
    for _ in range(400):
        fixed, slope, most = draw.randint(0, 10**6), draw.randint(1, 10**5), draw.choice([1, 2, 3, 7, 50, 1000, 40_000])
        budget = draw.randint(fixed, fixed + 2 * slope * min(most, 700))
        truth = max((size for size in range(1, most + 1) if fixed + slope * size <= budget), default=0)
        found, asked = search(lambda n: fixed + slope * n, most=most, budget=budget, refuses=refuses)  # noqa: B023
        assert truth - truth // 16 <= found <= truth, (fixed, slope, most, budget, asked)
        assert (found in asked or not found) and len(asked) == len(set(asked)) <= 24
        if not refuses:
            assert max(asked) <= max(truth, 4) and len(asked) <= 12
        if truth == most:
            assert found == most, "all rows of the epoch fit"


@pytest.mark.parametrize("power", [0.7, 1.5])
def test_a_curved_line_is_followed_step_by_step(power):
    """No size is more than four times one that was seen to fit, and the answer has been tried."""
    peaks = lambda n: int(1000 * n**power)  # noqa: E731
    for budget in (1500, 20_000, 3_000_000):
        found, asked = search(peaks, most=10_000, budget=budget, refuses=False)
        truth = max(n for n in range(1, 10_001) if peaks(n) <= budget)
        assert found in asked and 0.8 * truth <= found <= truth
        fitting = [1] + [n for n in asked if n <= truth]
        assert all(n <= max(2, 4 * max(f for f in fitting if f < n)) for n in asked if n > 1)


def test_a_flat_line_goes_on_to_all_rows():
    assert search(lambda n: 500, most=300, budget=1000, refuses=False) == (300, [2, 4, 16, 64, 256, 300])


# memory


def fresh(size: int) -> torch.Tensor:
    """`size` MB of ones in pages of their own, which go back to the system with the tensor.

    malloc may hand out what other tests freed and the process still holds, of which memory does not rise: always below
    its threshold for pages of their own, which glibc raises up to 32 MB, and beyond it where so large a hole is left.
    """
    pages = mmap.mmap(-1, size * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones would count as a file
    return torch.frombuffer(pages, dtype=torch.float32).fill_(1)


def test_the_peak_of_what_is_allocated_and_freed():
    def work():
        for _ in range(3):
            fresh(50).add_(1)

    with memory.PeakMemory(CPU) as peak:
        before = memory.used_memory(CPU)
        work()
        held = fresh(30)
        both = [fresh(90), fresh(90)]
        time.sleep(0.5)  # memory is looked at now and then: on a busy machine a moment is missed
        del both
    assert 200 * MB <= peak.bytes - before <= 240 * MB and held.sum() > 0


def fake_system(folder: Path, monkeypatch, files: dict) -> None:
    """proc/ and cgroup/ with these files in place of the system's."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(memory, "PROC", folder / "proc")
    monkeypatch.setattr(memory, "CGROUPS", folder / "cgroup")


def group(folder: str, limit, used: int, droppable: int, version: int) -> dict:
    names = (("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
             ("memory.max", "memory.current", "inactive_file"))[version - 1]  # fmt: skip
    folder = f"cgroup/{'memory/' if version == 1 else ''}{folder}".rstrip("/")
    return {f"{folder}/{names[0]}": f"{limit}\n", f"{folder}/{names[1]}": f"{used}\n",
            f"{folder}/memory.stat": f"cache 5\n{names[2]} {droppable}\n"}  # fmt: skip


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:    8000 kB\n"}
SYSTEMS = {
    "machine alone": ({}, 8000 * 1024),
    "group without a limit": ({"proc/self/cgroup": "0::/\n", **group("", "max", 7, 0, 2)}, 8000 * 1024),
    "container": ({"proc/self/cgroup": "0::/on/the/host\n", **group("", 5_000_000, 3_000_000, 1000, 2)}, 2_001_000),
    "a parent's limit": (
        {"proc/self/cgroup": "0::/job/step\n", **group("job/step", "max", 9, 0, 2),
         **group("job", 70_000, 60_000, 5, 2)},
        10_005,
    ),
    "version 1": (
        {"proc/self/cgroup": "3:cpu:/x\n4:memory:/a/b\n", **group("a/b", 4_000_000, 1_000_000, 500, 1),
         **group("", 2**63 - 4096, 10, 0, 1)},
        3_000_500,
    ),
    "over its limit": ({"proc/self/cgroup": "0::/\n", **group("", 100, 300, 0, 2)}, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_free_memory_is_what_machine_and_groups_leave(tmp_path, monkeypatch, name):
    files, expected = SYSTEMS[name]
    fake_system(tmp_path, monkeypatch, MEMINFO | files)
    assert memory.free_memory(CPU) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert memory.free_memory(CPU) == expected // 3


def test_free_memory_of_this_machine():
    real = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.free_memory(CPU) <= real


# the steps


class Pictures(torch.utils.data.Dataset):
    """Noise of 3 x 64 x 64 pixels; the truth is its mean. `asked`: the keys, in order."""

    def __init__(self, count=40, side=16):
        self.count, self.side, self.asked = count, side, []

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        self.asked.append(key)
        image = torch.from_numpy(np.random.default_rng(key).random((3, self.side, self.side), np.float32))
        return {"image": image, "target": image.mean(0, keepdim=True), "valid": torch.ones(1).bool(), "id": str(key[1])}


def collate(samples):
    stacked = {name: torch.stack([sample[name] for sample in samples]) for name in ("image", "target", "valid")}
    return stacked | {"id": [sample["id"] for sample in samples]}


class Net(torch.nn.Module):
    def __init__(self, width=32):
        super().__init__()
        torch.manual_seed(1)
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3, padding=1), torch.nn.BatchNorm2d(width))
        self.head = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, image):
        return self.head(torch.relu(self.backbone(image)))


def plan(model, settings):
    groups = [{"params": list(part.parameters()), "lr": 0.1, "part": name, "weight_decay": 0.1}
              for name, part in (("backbone", model.backbone), ("head", model.head))]  # fmt: skip
    return groups, [Stage(2, {"backbone": 0.0}), Stage(3, {}), Stage(1, {"head": 0.0})]


def squared(outputs, batch):
    return {"loss": ((outputs - batch["target"]) ** 2).mean()}


TASK = SimpleNamespace(plan=plan, build_loss=lambda spec, settings: squared, keep=lambda *words: None,
                       to_pred=lambda model, outputs: {"pred": outputs.mean((1, 2, 3))})  # fmt: skip
SETTINGS = {"seed": 5, "ema_decay": 0.9, "grad_clip": 1.0, "workers": 0, "on_nan": "stop"}


def measure(model=None, train=None, valid=None, task=TASK, **settings) -> int:
    train, machine = train or Pictures(), Machine(CPU)
    return measure_batch_size(task, model or Net(), train, valid, collate, {}, SETTINGS | settings, machine)


def task_that_fits(most: int, seen=None, message="CUDA out of memory. Tried to allocate"):
    """A task whose loss finds no memory for more than so many rows."""

    def loss(outputs, batch):
        if seen is not None:
            seen.append(len(outputs))
        if len(outputs) > most:
            raise RuntimeError(message)
        return squared(outputs, batch)

    return SimpleNamespace(**vars(TASK) | {"build_loss": lambda spec, settings: loss})


@pytest.mark.parametrize("most", [1, 2, 3, 11, 39])
def test_out_of_memory_is_met_and_stepped_back_from(most, capsys):
    seen = []
    assert most - most // 16 <= measure(task=task_that_fits(most, seen)) <= most
    assert max(seen) > most
    assert "does not fit" in capsys.readouterr().out


def test_words_of_allocators_and_other_errors():
    for message in ("DefaultCPUAllocator: can't allocate memory: you tried", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                    "CUBLAS_STATUS_ALLOC_FAILED when calling", "MPS backend out of memory"):  # fmt: skip
        assert is_out_of_memory(RuntimeError(message))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        measure(task=task_that_fits(3, message="mat1 and mat2 shapes cannot be multiplied"))


def test_not_even_one_row(capsys):
    with pytest.raises(InputError, match="not even one row fits into memory; take a smaller --crop"):
        measure(task=task_that_fits(0))


def test_a_head_without_steps_has_nothing_to_measure():
    model = Net()
    model.closed_form = True
    with pytest.raises(InputError, match="ridge is fitted without steps; give a number"):
        measure(model, head="ridge")


def test_no_more_than_the_rows_of_an_epoch(capsys):
    assert measure(train=Pictures(13)) == 13
    assert "batch size 13 (auto, measured): all of the epoch's 13 rows; a step of 2: " in capsys.readouterr().out


def test_model_and_generators_are_left_alone():
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wants = [(p.requires_grad, p.grad) for p in model.parameters()]
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    state = str(rng_state())
    model.eval()
    measure(model, valid=Pictures(4))
    assert str(rng_state()) == state and not model.training
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == wants
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def rehearsal(**settings) -> Rehearsal:
    machine, side = Machine(CPU, settings.pop("amp", None)), settings.pop("side", 16)
    return Rehearsal(TASK, Net(), Pictures(40, side), None, collate, {}, SETTINGS | settings, machine)


def test_steps_are_those_of_training_at_its_hungriest():
    """The stage that trains the most; moments, average and all gradients are there; weights stand still."""
    subject = rehearsal()
    subject.begin()
    trainer, start = subject.trainer, Net().state_dict()
    assert subject.epoch == 2 and all(p.requires_grad for p in trainer.model.parameters())
    assert len(trainer.optimizer.state) == len(list(trainer.model.parameters()))
    assert trainer.ema is not None and trainer.grad_clip == 1.0 and trainer.model.training
    subject.step(6)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(value, start[name]), "the rate is 0"
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {f"backbone.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert max(state["exp_avg"].abs().max() for state in trainer.optimizer.state.values()) > 0


def test_bf16_halves_what_a_step_holds():
    sizes = {}
    for amp in (None, torch.bfloat16):
        subject = rehearsal(amp=amp, ema_decay=0.0, side=64)
        sizes[amp] = subject.peak(40) - subject.peak(4)
    assert sizes[torch.bfloat16] < 0.9 * sizes[None]


def test_the_budget_is_kept_and_used(monkeypatch):
    """Of a net whose step takes some MB a row: the number's own peak is within, a quarter more would not be."""
    memory.release_memory(CPU)  # what other tests freed is no part of it
    budget = memory.used_memory(CPU) + 250 * MB
    monkeypatch.setattr(Rehearsal, "limit", lambda self: budget)
    found = measure(train=Pictures(4000, 64))
    subject = rehearsal(side=64)
    assert 20 < found < 1000
    assert subject.peak(found) <= budget + 40 * MB
    assert subject.peak(found + found // 2) > budget


def test_validation_and_waiting_batches_count(monkeypatch):
    """Whole tiles of 256 px are validated after crops of 16; loader workers hold batches of 4 KB a row."""
    peaks = {}
    for name, valid, workers in (("crops", None, 0), ("tiles", Pictures(40, 256), 0), ("workers", None, 4000)):
        subject = Rehearsal(TASK, Net(), Pictures(), valid, collate, {}, SETTINGS | {"workers": workers}, Machine(CPU))
        peaks[name] = subject.peak(20)
        subject.end()
    assert peaks["tiles"] > peaks["crops"] + 100 * MB
    row = 4 * 3 * 16**2 + 4 * 16**2 + 1
    assert peaks["workers"] - peaks["crops"] == pytest.approx(2 * 4000 * 20 * row, abs=40 * MB)


# runs


QUIET = ("--fold", "0", "--epochs", "2")


def settle_on(monkeypatch, number: int) -> list:
    """From now on `number` rows fit, whatever a real step takes; the list of sizes that steps were taken of."""
    peak, seen = Rehearsal.peak, []

    def counted(self, size):
        seen.append(size)
        assert peak(self, size) > 0
        return size

    monkeypatch.setattr(Rehearsal, "peak", counted)
    monkeypatch.setattr(Rehearsal, "limit", lambda self: number)
    return seen


def args_of(fold: Path) -> dict:
    return yaml.safe_load((fold / "args.yaml").read_text())


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


def test_a_run_is_that_of_the_number_given(tiles_empty, monkeypatch, capsys):
    import tiny_tiles

    words = (*QUIET, "--dropout", ".3", "--crops-per-epoch", "9")
    given = tiny_tiles.train(tiles_empty, *words, "--batch-size", "5", run="given") / "fold0"
    seen = settle_on(monkeypatch, 5)
    auto = tiny_tiles.train(tiles_empty, *words, "--batch-size", "auto", run="auto") / "fold0"
    assert seen == [2, 4, 5] and "batch size 5 (auto, measured)" in capsys.readouterr().out
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(auto / name), load_checkpoint(given / name)
        assert one["args"]["batch_size"] == 5 and type(one["args"]["batch_size"]) is int
        for key in one.keys() - {"args", "git", "history"}:
            assert same(one[key], other[key]), f"{name}: {key}"
    assert args_of(auto) == args_of(given) | {"run": "auto"}
    assert (auto / "oof_counts.csv").read_bytes() == (given / "oof_counts.csv").read_bytes()


def test_a_run_keeps_its_number(tiles_empty, monkeypatch, capsys):
    """Resumed with `auto`, asked for another fold and called with the number it is the same run."""
    import tiny_tiles

    words = ("--epochs", "2", "--batch-size", "auto")
    seen = settle_on(monkeypatch, 3)
    with monkeypatch.context() as patch:
        patch.setattr("common.engine.loop.Trainer.check_collapse", stop_now)
        with pytest.raises(Stopped):
            tiny_tiles.train(tiles_empty, *words, "--fold", "0", run="kept")
    fold = tiles_empty / "runs" / "kept" / "fold0"
    assert args_of(fold)["batch_size"] == 3 and seen
    seen.clear()
    settle_on(monkeypatch, 7)
    tiny_tiles.train(tiles_empty, *words, "--fold", "0", "--resume", run="kept")
    tiny_tiles.train(tiles_empty, "--epochs", "2", "--batch-size", "3", "--fold", "0", "--resume", run="kept")
    assert "finished before" in capsys.readouterr().out
    tiny_tiles.train(tiles_empty, *words, "--fold", "1", run="kept")
    assert not seen and load_checkpoint(fold / "last.pt")["args"]["batch_size"] == 3
    assert args_of(tiles_empty / "runs" / "kept" / "fold1")["batch_size"] == 3
    different = ("train", "--data", "data", *tiny_tiles.QUICK, "--fold", "0", "--batch-size", "4", "--run", "kept")
    tiny_tiles.call(tiles_empty, *different, code=2)
    assert "batch_size: 3 -> 4" in capsys.readouterr().err


class Stopped(BaseException):
    pass


def stop_now(trainer):
    raise Stopped


def test_check_says_the_number(tiles_empty, monkeypatch, capsys):
    import tiny_tiles

    settle_on(monkeypatch, 6)
    tiny_tiles.train(tiles_empty, *QUIET, "--batch-size", "auto", "--check", run="checked")
    said = capsys.readouterr().out
    assert "\nbatch_size: 6\n" in said and "contact sheet of 6 augmented inputs" in said
    places = [
        said.index(words) for words in ("\nbatch_size: auto\n", "\nweights: ", "(auto, measured)", "\nbatch_size: 6\n")
    ]
    assert places == sorted(places), "what is asked for stands above what may fail"


def begun(folder: Path, size, *files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "args.yaml").write_text(yaml.safe_dump({"batch_size": size}))
    for name in files:
        (folder / name).write_bytes(b"")
    return folder


def test_what_binds_a_fold(tmp_path):
    def known(run: str, **flags):
        return known_batch_size(tmp_path / run / "fold0", **{"resume": False, "force": False} | flags)

    assert known("new") is None
    begun(tmp_path / "failed" / "fold0", 64)
    assert known("failed") is None and known("failed", resume=True) == 64
    begun(tmp_path / "early" / "fold0", "auto")
    assert known("early", resume=True) is None
    begun(tmp_path / "own" / "fold0", 24, "last.pt")
    assert known("own") == 24 and known("own", force=True) is None
    begun(tmp_path / "others" / "fold0", 8, "finished.json")
    begun(tmp_path / "others" / "fold1", 9, "best.pt")
    begun(tmp_path / "others" / "fold2", 10)
    assert known("others") == 8 and known("others", force=True) == 9
    begun(tmp_path / "next" / "fold1", 12, "finished.json")
    assert known("next") == known("next", resume=True) == 12


# two processes


@pytest.mark.soak
def test_two_processes_take_the_smaller_number_of_both(tiles_empty):
    """Rank 0 could take 4 rows and rank 1 only 3, after another number of steps: each batch has 6, as if one said 6."""
    from children import free_port

    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
             "--master-port", str(free_port()), __file__]  # fmt: skip
    root = Path(__file__).resolve().parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(root.parent), str(root)))}
    done = subprocess.run(words, cwd=tiles_empty, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "batch size 6 (auto, measured by 2 processes)" in done.stdout
    assert args_of(tiles_empty / "runs" / "two" / "fold0")["batch_size"] == 6
    one, two = (load_checkpoint(tiles_empty / "runs" / run / "fold0" / "last.pt") for run in ("two", "said"))
    assert same(one["state_dict"], two["state_dict"]) and json.dumps(one["spec"]) == json.dumps(two["spec"])


def main():
    import tiny_tiles

    import train
    from common.engine import device as devices

    rank, tried = int(os.environ["RANK"]), []
    largest = batch_size.largest_size

    def of_rank(peak, **options):
        return largest(lambda size: tried.append(size) or peak(size) * 0 + size, **options | {"budget": 4 - rank})

    batch_size.largest_size = of_rank
    tiny_tiles.patch_models()
    stop, devices.stop_processes = devices.stop_processes, lambda: None
    words = ["--data", "data", *tiny_tiles.SMALL, *QUIET, "--loss", "B", "--augment"]
    train.main([*words, "--batch-size", "auto", "--run", "two"])
    assert tried == ([2, 4], [2, 4, 3])[rank], tried
    train.main([*words, "--batch-size", "6", "--run", "said"])
    stop()


if __name__ == "__main__":
    main()
