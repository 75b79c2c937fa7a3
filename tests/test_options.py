"""No option does nothing: each, moved from its default, gives other weights than the same call without it."""

import pytest
import tiny_data
import torch

from common.engine import tracking
from common.engine.checkpoint import load_checkpoint

AUX = ("--use-aux-heads",)
DISTILL = (*AUX, "--distill", "--distill-warmup", "1")
MIXUP, CUTMIX = ("--mixup-prob", "1"), ("--cutmix-prob", "1")
STAGES = ("--two-stage", "--freeze-epochs", "1")
STORED = ("--freeze-backbone", "--store-views", "2")
# what is changed -> what it is changed in
OPTIONS = {
    ("--seed", "1"): (),
    ("--lr", "2e-3"): (),
    ("--backbone-lr", "2e-4"): (),
    ("--weight-decay", ".5"): (),
    ("--warmup-epochs", "0"): (),
    ("--grad-clip", "0"): (),
    ("--accumulate", "2"): (),
    ("--batch-size", "5"): (),
    ("--ema-decay", ".5"): (),
    ("--amp", "bf16"): (),
    ("--loss", "huber"): (),
    ("--loss", "mse"): (),
    ("--loss", "r2"): (),
    ("--target-weights", "equal"): (),
    ("--constraint-weight", "1"): (),
    ("--log-targets", "GDM_g"): (),
    ("--two-part", "Dry_Dead_g"): (),
    ("--uncertainty",): (),
    ("--dropout", ".5"): (),
    ("--drop-path", ".3"): (),
    ("--hidden-ratio", "1"): (),
    ("--fusion", "concat"): (),
    ("--pool", "mean"): (),
    ("--blocks", "1"): (),
    ("--standardise",): (),
    ("--layer-decay", ".5"): (),
    ("--unfreeze-blocks", "1"): (),
    ("--augment", "hflip"): (),
    ("--augment", "hflip=.5", "noise=.9:3"): ("--augment", "hflip=.5", "noise=.9:1"),
    ("--photometric-independent",): (),
    ("--swap-prob", "1"): (),
    MIXUP: (),
    ("--mixup-alpha", "4"): MIXUP,
    ("--mix-within", "state"): MIXUP,
    CUTMIX: (),
    ("--cutmix-alpha", ".2"): CUTMIX,
    ("--allow-missing-targets", "--shuffle-images"): ("--allow-missing-targets",),
    AUX: (),
    ("--aux-state-weight", "9"): AUX,
    ("--aux-month-weight", "9"): AUX,
    ("--aux-species-weight", "9"): AUX,
    ("--distill",): AUX,
    ("--distill-weight", "5"): DISTILL,
    (*DISTILL, "--distill-warmup", "0"): DISTILL,
    STAGES: (),
    ("--head-lr-stage1", "5e-3"): STAGES,
    ("--freeze-backbone", "--store-views", "0"): (),
    ("--store-views", "3"): STORED,
    (*STORED, *MIXUP): STORED,
    (*STORED, "--swap-prob", "0"): STORED,
    (*STORED, "--augment", "vflip=1"): STORED,
}


@pytest.fixture(scope="module")
def weights(tiny_home, tmp_path_factory):
    """words -> the averaged weights that a fold trained with them ends with."""
    home, made = tmp_path_factory.mktemp("options"), {}
    (home / "data").symlink_to(tiny_home / "data")

    def train(words: tuple) -> dict:
        if words not in made:
            run = tiny_data.train(home, *words, "--fold", "0", "--run", f"run{len(made)}")
            made[words] = load_checkpoint(run / "fold0" / "last.pt")["ema"]
        return made[words]

    return train


@pytest.mark.parametrize("change", OPTIONS, ids=" ".join)
def test_the_option_changes_what_is_learnt(weights, monkeypatch, change):
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    base = OPTIONS[change]
    one, other = weights(base), weights((*base, *change))
    shared = [
        key for key in one if key in other and one[key].shape == other[key].shape and one[key].is_floating_point()
    ]
    assert any(not torch.equal(one[key], other[key]) for key in shared) or one.keys() != other.keys()


def test_the_same_call_twice_gives_the_same_weights(weights):
    """Else every comparison above would prove nothing."""
    one, other = weights(()), weights(("--workers", "0"))
    assert all(torch.equal(one[key], other[key]) for key in one)
