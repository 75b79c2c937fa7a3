"""Every option of the thaw-slump task does something: in the first step, in the weights, in what is drawn."""

import importlib
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_rts
import tiny_tiles
import torch
from test_engine_resume import ends_with_the_same_bytes
from tiny_rts import call, log_of, train

import train as train_script
from common.engine import tracking
from common.engine.checkpoint import load_checkpoint
from common.tasks import TASKS

RTS = TASKS["rts"]
GIVEN = ("--task", "rts", "--data", "data")
ALL = ("--bands", "red", "green", "blue", "ndvi")
SOFT = ("--soft-labels", "distance")
TVERSKY = ("--loss", "tversky")
# what is changed -> what it is changed in; seen in the first step of --check
STEP = {
    ALL: (),
    ("--bands", "blue", "green", "red"): (),
    ("--ratio", "3"): (),
    ("--scales-train", ".5", "1"): (),
    SOFT: (),
    ("--soft-labels", "blur"): SOFT,
    (*SOFT, "--soft-width", "5"): SOFT,
    ("--ignore-rim", "2"): (),
    ("--focal-alpha", ".25"): (),
    ("--focal-gamma", "5"): (),
    TVERSKY: (),
    (*TVERSKY, "--tversky", ".3", ".7"): TVERSKY,
    (*TVERSKY, "--no-foreground"): TVERSKY,
    ("--loss", "dice", "--no-foreground"): ("--loss", "dice"),
    (*ALL, "--fusion", "late"): ALL,
    ("--sampler", "uniform"): (),
    ("--spatial-attention", "head"): (),
    ("--augment", "colour-jitter=1"): ("--augment",),
    ("--augment", "elastic-fine=1"): ("--augment",),
    ("--augment", "shift-scale-rotate=1"): ("--augment",),
    ("--crop", "48"): (),
    ("--shuffle-images",): (),
}  # fmt: skip


@pytest.fixture(scope="module")
def first_step(slumps_home, tmp_path_factory):
    return tiny_tiles.first_steps(tmp_path_factory.mktemp("steps"), slumps_home / "data", tiny_rts.QUICK)


@pytest.mark.parametrize("change", STEP, ids=" ".join)
def test_the_option_changes_the_step(first_step, monkeypatch, capsys, change):
    monkeypatch.delitem(RTS.draw, "sheet")
    assert first_step(change, capsys) != first_step(STEP[change], capsys)


def test_the_same_call_twice_takes_the_same_step(first_step, monkeypatch, capsys):
    """Else every comparison above would prove nothing."""
    monkeypatch.delitem(RTS.draw, "sheet")
    assert first_step((), capsys) == first_step(("--workers", "0"), capsys)


# what the crops hold


def training_set(home: Path, *words):
    """(training dataset of fold 0, settings, spec) as train.py opens them."""
    parsed = train_script.parser_of(RTS).parse_args([*tiny_rts.QUICK, "--sampler", "ratio", *words])
    settings = vars(parsed) | {"cache_images": False}
    rows = RTS.read_rows(home / "data", settings)
    rows = rows[rows["region"].isin(tiny_rts.SPLITS["train"])].reset_index(drop=True)
    spec = RTS.make_spec(rows, settings)
    return RTS.open_training(rows, spec, settings), settings, spec


def test_colour_augmentation_leaves_ndvi_alone(slumps_home):
    """The same crops with and without jitter: red, green and blue differ, NDVI is the same to the last bit."""
    bands = ("--bands", "ndvi", "red", "green", "blue")
    plain, _, _ = training_set(slumps_home, *bands, "--augment", "hflip=0")
    jittered, _, _ = training_set(slumps_home, *bands, "--augment", "colour-jitter=1")
    for key in [(0, k) for k in range(6)]:
        one, other = plain[key], jittered[key]
        assert torch.equal(one["image"][0], other["image"][0]) and torch.equal(one["target"], other["target"])
        assert not torch.equal(one["image"][1:], other["image"][1:])
        assert not other["image"][1:, ~other["data"]].any(), "what has no data stays without"


def test_no_photometric_augmentation_touches_what_is_measured(slumps_home):
    """Whatever is chosen by name, NDVI and elevation stay as they are."""
    bands = ("--bands", "red", "ndvi", "green", "blue", "relative_elevation")
    plain, _, _ = training_set(slumps_home, *bands, "--augment", "hflip=0")
    names = ("brightness", "contrast", "gamma", "noise", "band-jitter", "band-drop")
    painted, _, _ = training_set(slumps_home, *bands, "--augment", *(f"{name}=1" for name in names))
    for key in [(0, k) for k in range(6)]:
        one, other = plain[key]["image"], painted[key]["image"]
        assert torch.equal(one[[1, 4]], other[[1, 4]])
        assert all(not torch.equal(one[channel], other[channel]) for channel in (0, 2, 3))


def test_the_ratio_is_that_of_the_crops(slumps_home):
    """1:3 shows one crop with slumps in four; a ramp goes from its first number to its last."""
    data, settings, _ = training_set(slumps_home, "--ratio", "1", "3", "--ratio-epochs", "4", "--crops-per-epoch", "24")
    for epoch, wanted in ((0, 12), (2, 8), (4, 6), (9, 6)):
        held = [bool(((s := data[epoch, k])["target"] == 1)[s["valid"]].any()) for k in range(len(data))]
        assert sum(held) == wanted and len(held) == 24
    everything, _, _ = training_set(slumps_home, "--ratio", "3", "--crops-per-epoch", "0")
    assert len(everything) == 6 * 4, "by default an epoch shows each positive tile once"
    for words in (("1", "50"), ("50", "1")):
        ramp, _, _ = training_set(slumps_home, "--ratio", *words, "--ratio-epochs", "9", "--crops-per-epoch", "0")
        assert len(ramp) == 6 * 51 and {ramp.plan.positives_of(epoch, len(ramp)) for epoch in (0, 9)} == {6, 153}


def test_soft_labels_and_rims_are_of_the_training_alone(slumps_home):
    """Confidence falls across the edge; pixels of the rim are not valid; validation rows know nothing of either."""
    data, settings, spec = training_set(slumps_home, "--soft-labels", "distance", "--ignore-rim", "1")
    plain, _, _ = training_set(slumps_home)
    sample = next(data[0, k] for k in range(16) if data[0, k]["target"].any())
    soft, target = sample["soft"], sample["target"]
    assert ((soft > 0) & (soft < 1)).any() and (soft[target == 1] >= 0.5).all() and (soft[target == 0] <= 0.5).all()
    assert sum(int(plain[0, k]["valid"].sum() - data[0, k]["valid"].sum()) for k in range(16)) > 0
    rows = RTS.read_rows(slumps_home / "data", settings)[:1]
    whole = RTS.open_rows(rows, spec, settings)[0]
    assert "soft" not in whole and int((~whole["valid"]).sum()) == int((~whole["data"]).sum()) + 9


def test_scales_of_the_windows(slumps_home):
    """Scale .5 shows a window twice as wide, resampled to the crop."""
    data, _, _ = training_set(slumps_home, "--scales-train", ".5", "1", "2")
    sides = [data.plan.draw(42, 0, k, 16)[3] for k in range(16)]
    assert set(sides) == {64, 32, 16} and {tuple(data[0, k]["image"].shape[1:]) for k in range(16)} == {(32, 32)}
    wide, _, _ = training_set(slumps_home, "--scales-train", ".5", "--crop", "64", "--augment", "hflip=0")
    for sample in (wide[0, k] for k in range(4)):  # the 64 px of the tile at half the size, no data around them
        assert sample["image"].shape[1:] == (64, 64) and 800 < int(sample["data"].sum()) <= 1024
        assert not sample["valid"][~sample["data"]].any() and not sample["image"][:, ~sample["data"]].any()


# what is learnt

RUN = ("--epochs", "3", "--lr", "5e-3", "--no-oof", "--warmup-epochs", "0", "--crops-per-epoch", "40")


def found_by(home: Path, *words, run: str) -> float:
    """Share of the pixels that training predicted in its last epoch."""
    return log_of(train(home, *RUN, *words, run=run) / "fold0")[-1]["train_predicted"]


def test_alpha_of_tversky_weighs_what_is_missed(slumps_empty, monkeypatch):
    """Its first letter large: more is found; its second large: less."""
    monkeypatch.setattr(tracking, "write_curves", lambda *_, **__: None)
    loss = ("--loss", "tversky", "--foreground", "--tversky")
    more = found_by(slumps_empty, *loss, ".95", ".05", run="more")
    less = found_by(slumps_empty, *loss, ".05", ".95", run="less")
    assert more > 1.2 * less


def test_late_fusion_learns_and_predicts(slumps_empty):
    words = (*ALL, "--fusion", "late", "--epochs", "1")
    run = train(slumps_empty, *words, run="late")
    spec = load_checkpoint(run / "fold0/last.pt")["spec"]
    assert spec["model"]["fusion"] == "late" and spec["model"]["rgb"] == [0, 1, 2]
    call(slumps_empty, "infer", "--runs", "late", "--workers", "0", "--out", "preds")
    assert len(list((slumps_empty / "preds/masks").iterdir())) == 4


RAMP = (*tiny_rts.SMALL, *ALL, "--epochs", "4", "--ratio", "1", "3", "--ratio-epochs", "3", "--scales-train", ".5", "1",
        "--soft-labels", "blur", "--ignore-rim", "1", "--lr", "1e-2", "--augment", "hflip=.5", "colour-jitter=.5",
        "elastic-fine=.5", "--collapse-epochs", "3", "--fold", "0")  # fmt: skip


@pytest.mark.soak
def test_killed_anywhere_and_resumed(slumps_empty, monkeypatch):
    """The ramp of the ratio goes on where it was: the same bytes of weights, history and maps."""
    folder = ends_with_the_same_bytes(monkeypatch, partial(train, slumps_empty, base=RAMP), slumps_empty)
    shown = [line["train_shown_slump"] for line in log_of(folder)]
    assert np.mean(shown[:1]) > np.mean(shown[-1:]), "fewer slumps are shown as the ratio falls"


@pytest.mark.parametrize("script", ["make_folds", "train", "infer", "ensemble"])
def test_every_option_of_the_task_is_exercised(script):
    """An option that no test names could do nothing and nobody would know. What glacier has as well is tested there."""
    module = importlib.import_module(script)
    options = {name: set(action.option_strings) for name, action in module.parser_of(RTS).actions().items()}
    elsewhere = {**module.parser_of(TASKS["biomass"]).actions(), **module.parser_of(TASKS["glacier"]).actions()}
    again = {"min_area", "fill_holes"}  # of the same name, but not the same option
    here = [*Path(__file__).parent.glob("*rts*.py"), Path(__file__).with_name("test_scene_maps.py")]
    words = {word for path in here for word in re.findall(r"--[a-z0-9-]+", path.read_text())}
    unused = [n for n, strings in options.items() if (n not in elsewhere or n in again) and not strings & words]
    assert not unused, unused
