"""Two processes end with what one ends with: the sums of a loss run over both, odd batches and validation included."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_data
import torch
from children import together

from common.datasets.sampling import EpochBatches, as_padding, make_loader
from common.engine.checkpoint import load_checkpoint
from common.losses.regression import build_loss

# 9 training rows in batches of 4: the last has one row, so that the second process gets a padded one
PLAIN = (*tiny_data.SMALL, "--data", "data", "--fold", "0", "--epochs", "3", "--lr", "1e-3", "--backbone-lr", "1e-4",
         "--dropout", "0", "--augment", "--swap-prob", "0", "--no-use-aux-heads", "--amp", "off")  # fmt: skip
RUNS = {
    "r2": ("--loss", "r2", "--no-two-stage"),
    "smooth-l1": ("--loss", "smooth-l1", "--no-two-stage", "--grad-clip", ".5"),
    "two-stage": ("--loss", "smooth-l1", "--two-stage", "--freeze-epochs", "1", "--accumulate", "2"),
    "options": ("--loss", "huber", "--no-two-stage", "--use-aux-heads", "--distill", "--distill-warmup", "1",
                "--two-part", "Dry_Clover_g", "--uncertainty", "--constraint-weight", ".1"),
    "mixed": ("--loss", "smooth-l1", "--no-two-stage", "--mixup-prob", ".3", "--cutmix-prob", ".6", "--mix-within",
              "state"),
    "stored": ("--loss", "r2", "--no-two-stage", "--freeze-backbone", "--store-views", "1", "--mixup-prob", ".5"),
}  # fmt: skip


def arguments(name: str, run: str) -> list[str]:
    return [*PLAIN, *RUNS[name], "--run", run]


@pytest.fixture(scope="module")
def home(tiny_home, tmp_path_factory) -> Path:
    """A working folder with <name>-one and <name>-two, every run trained by one process and by two."""
    home = tmp_path_factory.mktemp("ddp")
    (home / "data").symlink_to(tiny_home / "data")
    for name in RUNS:
        assert tiny_data.call("train", *arguments(name, f"{name}-one"), cwd=home) == 0
    runs = [arguments(name, f"{name}-two") for name in RUNS]
    assert "2 processes" in together(lambda: tiny_data.train_all(home, runs), home)
    return home


def logged(home: Path, run: str, key: str) -> list[float]:
    return [json.loads(line)[key] for line in (home / "runs" / run / "fold0" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(home, name):
    one, two = (load_checkpoint(home / "runs" / f"{name}-{count}" / "fold0" / "last.pt") for count in ("one", "two"))
    assert one["global_step"] == two["global_step"] > 0
    start = tiny_start(home, one)
    for part in ("state_dict", "ema"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            moved = (value.double() - start[key].double()).norm()
            apart = (value.double() - two[part][key].double()).norm()
            # a key's bias has no gradient but rounding, which AdamW makes as large as any other
            assert apart <= 1e-3 * moved + 1e-6 or key.endswith("qkv.bias"), f"{part} {key}: {apart} of {moved}"


def tiny_start(home: Path, content: dict) -> dict:
    """The weights that the run began with."""
    from common.engine.device import seed_everything
    from common.tasks import TASKS

    seed_everything(42)
    return TASKS["biomass"].build_model(content["spec"]).state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_scores_are_of_all_rows(home, name):
    for key in ("train_loss", "score"):
        np.testing.assert_allclose(logged(home, f"{name}-two", key), logged(home, f"{name}-one", key), rtol=2e-5)


@pytest.mark.parametrize("name", RUNS)
def test_validation_rows_are_counted_once(home, name):
    one, two = (pd.read_csv(home / "runs" / f"{name}-{count}" / "fold0" / "oof.csv") for count in ("one", "two"))
    assert len(one) == 9 and list(one["id"]) == list(two["id"]), "9 rows, in the order of one process"
    numbers = one.columns.difference(["id", "fold"])
    np.testing.assert_allclose(one[numbers], two[numbers], rtol=1e-4, atol=1e-4)


def test_one_line_in_the_ledger_and_one_log(home):
    ledger = pd.read_csv(home / "runs" / "ledger.csv")
    assert sorted(ledger["run"]) == sorted(f"{name}-{count}" for name in RUNS for count in ("one", "two"))
    assert logged(home, "r2-two", "epoch") == [1, 2, 3]


def test_batches_of_several_processes_are_the_batches_of_one():
    for count, size, world in ((9, 4, 2), (17, 8, 3), (5, 8, 4), (8, 4, 2)):
        one = list(EpochBatches(count, size, seed=3))
        shares = [list(EpochBatches(count, size, seed=3, rank=rank, world=world)) for rank in range(world)]
        assert all(len(share) == len(one) for share in shares), "every process takes every step"
        for step, batch in enumerate(one):
            together = [index for share in shares for _, index in share[step]]
            assert sorted(index for index in together if index >= 0) == sorted(index for _, index in batch)
            assert all(~index == batch[0][1] for index in together if index < 0)


@pytest.mark.parametrize("kind", ["mse", "smooth-l1", "huber", "r2"])
def test_a_padded_row_has_no_weight_in_any_loss(kind):
    """Three rows and a padded copy of one give the loss and the gradient of the three."""
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 5, generator=generator) * 50
    rows = {
        "target": target,
        "valid": torch.ones(3, 5, dtype=torch.bool),
        "aux": {"state": torch.eye(4)[:3]},
        "epoch": 3,
    }
    more = as_padding({"target": target[:1], "valid": rows["valid"][:1], "aux": {"state": torch.eye(4)[:1]}})
    padded = {name: torch.cat([rows[name], more[name]]) for name in ("target", "valid")}
    padded |= {"aux": {"state": torch.cat([rows["aux"]["state"], more["aux"]["state"]])}, "epoch": 3}
    loss = build_loss(kind=kind, outputs=tiny_data.OUTPUTS, constraint_weight=0.3, log_targets=["Dry_Dead_g"],
                      uncertainty=True, two_part=["Dry_Clover_g"], aux_weights={"state": 1.0}, distill_weight=0.5,
                      distill_warmup=1)  # fmt: skip
    value = {"value": (3, 5), "log_var": (3, 5), "nonzero": (3, 1), "teacher": (3, 5)}
    value = {name: torch.rand(*size, generator=generator, requires_grad=True) for name, size in value.items()}
    logits = torch.rand(3, 4, generator=generator, requires_grad=True)
    answers = []
    for batch in (rows, padded):
        take = torch.arange(len(batch["target"])) % 3
        outputs = {name: tensor[take] for name, tensor in value.items()} | {"aux": {"state": logits[take]}}
        total = loss(outputs, batch)["loss"]
        answers.append((total, torch.autograd.grad(total, [*value.values(), logits])))
    torch.testing.assert_close(answers[0], answers[1])


def test_padding_in_the_loader():
    """A process without a row of its own gets one in which nothing is known, in both kinds of loader."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, key):
            valid = torch.ones(2, dtype=torch.bool)
            return {"target": torch.full((2,), float(key[1])), "valid": valid, "aux": {"x": torch.ones(3)}}

    class Whole(Rows):
        def get_batch(self, epoch, indices):
            samples = [self[epoch, index] for index in indices]
            aux = {"x": torch.stack([sample["aux"]["x"] for sample in samples])}
            return {name: torch.stack([sample[name] for sample in samples]) for name in ("target", "valid")} | {
                "aux": aux
            }

    for rows in (Rows(), Whole()):
        batches = EpochBatches(5, 4, seed=0, shuffle=False, rank=1, world=2)
        first, last = list(make_loader(rows, batches, workers=0))
        assert first["target"][:, 0].tolist() == [1, 3] and first["valid"].all() and first["aux"]["x"].all()
        assert last["target"][:, 0].tolist() == [4] and not last["valid"].any() and not last["aux"]["x"].any()


def test_closed_form_is_refused_in_several_processes(tiny_empty, monkeypatch, capsys):
    from common.engine import device as devices

    machine = devices.Machine(devices.pick_device("cpu"), None, rank=0, world=2)
    monkeypatch.setattr(devices, "start_machine", lambda *_: machine)
    code = tiny_data.call("train", "--data", "data", *tiny_data.QUICK, "--head", "ridge", "--fold", "0", cwd=tiny_empty)
    assert code == 2 and "without torchrun" in capsys.readouterr().err
