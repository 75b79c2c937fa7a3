"""One forward path: inference gives the out-of-fold predictions back, views undo themselves, backbones are shared."""

import json

import numpy as np
import pandas as pd
import pytest
import timm
import tiny_data
import torch
from safetensors.torch import save_file
from torch import nn

from common.datasets.statistics import STATISTICS
from common.engine.checkpoint import build, load_checkpoint, save_checkpoint
from common.engine.predict import group_shared, predict
from common.engine.tta import VIEWS, apply_view, check_views, invert_view, split_view
from common.errors import InputError
from common.models import closed_form
from common.models.stereo import StereoRegressor
from common.tasks import TASKS

KINDS = {
    "mlp": (),
    "best": ("--use", "best"),
    "bf16": ("--amp", "bf16"),
    "frozen": ("--freeze-backbone", "--store-views", "2"),
    "ridge": ("--head", "ridge"),
    "ridge-backbone": ("--head", "ridge", "--weights", "vit.safetensors"),
}


def numbers(frame: pd.DataFrame) -> np.ndarray:
    return frame[list(tiny_data.OUTPUTS)].to_numpy()


def infer(home, *words, run="biomass-1x1-s42", expected=0) -> pd.DataFrame:
    """The frame that infer.py wrote; --out is given here."""
    out = home / "preds" / f"call{len(list((home / 'preds').glob('*')))}" if (home / "preds").exists() else "preds/call"
    code = tiny_data.call("infer", "--runs", run, "--data", "data", "--workers", "0", "--device-type", "cpu", *words,
                          "--out", out, cwd=home)  # fmt: skip
    assert code == expected
    return pd.read_csv(home / out / ("oof.csv" if "oof" in words else "pred.csv"))


@pytest.mark.parametrize("kind", KINDS)
def test_infer_gives_the_out_of_fold_predictions_back(tiny_empty, kind, monkeypatch):
    monkeypatch.setattr(closed_form, "plant_statistics", STATISTICS["colour"][0])  # its own take half a second a photo
    if kind == "ridge-backbone":
        save_file(
            timm.create_model("test_vit", num_classes=0, img_size=32).state_dict(), tiny_empty / "vit.safetensors"
        )
    amp = ("--amp", "bf16") if kind == "bf16" else ()
    run = tiny_data.train(tiny_empty, *KINDS[kind], "--run", kind, "--use-aux-heads")
    whole = pd.concat([pd.read_csv(run / f"fold{k}" / "oof.csv") for k in (0, 1)])
    back = infer(tiny_empty, "--rows", "oof", *amp, run=kind)
    assert list(back["id"]) == list(whole["id"]) and list(back["fold"]) == list(whole["fold"])
    assert list(back.columns) == list(whole.columns)
    np.testing.assert_allclose(numbers(back), numbers(whole), rtol=1e-6, atol=1e-5)  # grams; threads add in any order
    assert np.ptp(numbers(whole), axis=0).min() > 0, "predictions that do not vary would prove nothing"


def test_a_fold_trained_twice_as_long_is_another_one(tiny_home):
    """What the comparison above can see: ema, last and best differ from each other."""
    frames = [infer(tiny_home, "--rows", "oof", "--use", use) for use in ("ema", "last")]
    assert np.abs(numbers(frames[0]) / numbers(frames[1]) - 1).max() > 1e-5


@pytest.mark.parametrize("view", ["identity", "hflip", "vflip", "swap", "hflip+swap", "vflip+hflip", "swap+vflip"])
def test_a_view_is_undone_under_an_identity_model(view):
    image = torch.randn(2, 2, 3, 4, 6)
    seen = apply_view(view, image)
    assert torch.equal(invert_view(view, seen), image)
    assert view == "identity" or not torch.equal(seen, image)


def test_views_do_what_their_names_say():
    image = torch.arange(24.0).reshape(1, 2, 1, 3, 4)
    assert apply_view("hflip", image)[0, 0, 0, 0].tolist() == [3, 2, 1, 0]
    assert apply_view("vflip", image)[0, 0, 0, :, 0].tolist() == [8, 4, 0]
    assert apply_view("swap", image)[0, :, 0, 0, 0].tolist() == [12, 0]
    assert split_view("hflip+swap") == ("hflip", "swap") and split_view("swap") == ("identity", "swap")
    assert check_views(["hflip", "identity", "hflip"], list(VIEWS)) == ["identity", "hflip"]
    with pytest.raises(InputError, match="--tta turn.*choose from identity, hflip"):
        check_views(["turn"], list(VIEWS))
    with pytest.raises(InputError, match="swap"):
        check_views(["hflip+swap"], ["identity", "hflip"])


def small_model(seed: int, backbone: StereoRegressor | None = None) -> StereoRegressor:
    torch.manual_seed(seed)
    model = StereoRegressor(outputs=tiny_data.OUTPUTS, backbone="test_vit", grid=(2, 1), cell_size=32)
    if backbone is not None:
        model.backbone.load_state_dict(backbone.backbone.state_dict())
        model.backbone_key = "shared"
    return model.eval()


class Counted(nn.Module):
    """A backbone that counts its passes."""

    def __init__(self, module: nn.Module, calls: list):
        super().__init__()
        self.module, self.calls = module, calls

    def forward(self, x):
        self.calls.append(len(x))
        return self.module(x)


def batches(count=2):
    generator = torch.Generator().manual_seed(0)
    return [{"image": torch.randn(2, 2, 3, 64, 32, generator=generator), "id": [f"a{k}", f"b{k}"]}
            for k in range(count)]  # fmt: skip


def run_predict(models, views, loader=None):
    def to_pred(model, outputs):
        return model.to_grams(outputs)

    return predict(models, loader or batches(), views=views, device=torch.device("cpu"), to_pred=to_pred)


def test_a_shared_backbone_gives_the_plain_answer_with_three_passes_instead_of_twenty():
    first = small_model(0)
    views = ["identity", "hflip", "vflip", "swap"]
    shared, calls = [small_model(seed, first) for seed in range(5)], []
    for model in shared:
        model.backbone = Counted(model.backbone, calls)
    together = run_predict(shared, views)
    assert len(calls) == 3 * 2, "identity, hflip and vflip for each of two batches; swap and folds cost nothing"
    calls.clear()
    for model in shared:
        model.backbone_key = None
    apart = run_predict(shared, views)
    assert len(calls) == 20 * 2
    np.testing.assert_allclose(together["pred"], apart["pred"], rtol=1e-5)
    assert together["id"] == apart["id"] == ["a0", "b0", "a1", "b1"] and together["pred"].shape == (5, 4, 5)
    assert np.abs(apart["pred"][0] / apart["pred"][1] - 1).max() > 1e-3, "the heads differ"


def test_views_are_averaged_in_grams():
    model = small_model(3)
    alone = [run_predict([model], [view])["pred"] for view in ("identity", "hflip", "swap")]
    np.testing.assert_allclose(
        run_predict([model], ["identity", "hflip", "swap"])["pred"], np.mean(alone, 0), rtol=1e-6
    )
    assert np.abs(alone[0] / alone[2] - 1).max() > 1e-4, "a swap is seen by the model"
    image = batches()[0]["image"]
    flipped = [{"image": image.flip(-1), "id": ["a", "b"]}]
    np.testing.assert_allclose(run_predict([model], ["hflip"])["pred"][:, :2],
                               run_predict([model], ["identity"], flipped)["pred"], rtol=1e-6)  # fmt: skip


def test_models_keep_their_mode_and_only_equal_keys_share():
    models = [small_model(seed) for seed in range(4)]
    models[1].backbone_key = models[3].backbone_key = "x"
    assert group_shared(models) == [[0], [1, 3], [2]]
    models[0].train()
    run_predict(models, ["identity"])
    assert models[0].training and not models[1].training


def test_the_test_predictions_are_the_mean_of_folds_and_views(tiny_home):
    whole = numbers(infer(tiny_home, "--tta", "hflip", "swap"))
    folds = [numbers(infer(tiny_home, "--tta", "hflip", "swap", "--fold", str(k))) for k in (0, 1)]
    np.testing.assert_allclose(whole, np.mean(folds, 0), rtol=1e-6)
    plain = numbers(infer(tiny_home))
    assert plain.shape == (3, 5) and np.abs(plain / whole - 1).max() > 1e-6


def test_a_frozen_run_predicts_the_same_shared_and_plainly(tiny_empty):
    """The whole way: checkpoints that lack their backbone against the same ones with it inside, not shared."""
    run = tiny_data.train(tiny_empty, *KINDS["frozen"], "--run", "frozen")
    shared = numbers(infer(tiny_empty, "--tta", "hflip", "vflip", "swap", run="frozen"))
    for fold in ("fold0", "fold1"):
        path = run / fold / "last.pt"
        model, content = build(path, TASKS)
        content |= {"ema": model.state_dict(), "external": None}
        save_checkpoint(path, content)
    next(run.glob("backbone-*")).unlink()
    plain = numbers(infer(tiny_empty, "--tta", "hflip", "vflip", "swap", run="frozen"))
    np.testing.assert_allclose(shared, plain, rtol=1e-5)


def test_no_metadata_and_no_auxiliary_head_is_looked_at(tiny_empty):
    """test.csv has three columns; noise in the auxiliary heads changes not a bit of what is predicted."""
    run = tiny_data.train(tiny_empty, "--use-aux-heads", "--distill", "--distill-warmup", "1", "--run", "aux")
    assert list(pd.read_csv(tiny_empty / "data" / "test.csv")) == ["sample_id", "image_path", "target_name"]
    before = infer(tiny_empty, run="aux")
    touched = 0
    for fold in ("fold0", "fold1"):
        content = load_checkpoint(run / fold / "last.pt")
        for key, value in content["ema"].items():
            if any(word in key for word in ("head.aux", "head.teacher")):
                content["ema"][key] = torch.randn_like(value)
                touched += 1
        save_checkpoint(run / fold / "last.pt", content)
    assert touched >= 2 * 6
    pd.testing.assert_frame_equal(before, infer(tiny_empty, run="aux"), check_exact=True)


def test_a_missing_fold_is_refused(tiny_copy, capsys):
    (tiny_copy / "runs/biomass-1x1-s42/fold1/finished.json").unlink()
    words = ("infer", "--runs", "biomass-1x1-s42", "--data", "data", "--workers", "0")
    assert tiny_data.call(*words, cwd=tiny_copy) == 2
    said = capsys.readouterr().err.strip()
    assert "fold 1 of 2 is not finished" in said and said.count("\n") == 0
    assert tiny_data.call(*words, "--fold", "0", cwd=tiny_copy) == 0
    assert "uncalibrated" not in capsys.readouterr().out


def test_folds_of_different_splits_are_not_mixed(tiny_copy, capsys):
    path = tiny_copy / "runs/biomass-1x1-s42/fold1/last.pt"
    save_checkpoint(path, load_checkpoint(path) | {"folds_hash": "0" * 64})
    assert tiny_data.call("infer", "--runs", "biomass-1x1-s42", "--data", "data", "--workers", "0", cwd=tiny_copy) == 2
    assert "different folds.csv" in capsys.readouterr().err


def test_runs_of_different_splits_are_not_mixed(tiny_copy, capsys):
    assert tiny_data.call("make_folds", "--data", "data", "--folds", "3", "--out", "three.csv", cwd=tiny_copy) == 0
    tiny_data.train(tiny_copy, "--folds", "three.csv", "--run", "three", "--epochs", "1")
    words = ("--runs", "biomass-1x1-s42", "three", "--data", "data")
    assert tiny_data.call("infer", *words, "--workers", "0", cwd=tiny_copy) == 2
    assert tiny_data.call("ensemble", *words, cwd=tiny_copy) == 2
    assert capsys.readouterr().err.count("trained on different folds") == 2


def test_fold_minus_one_is_never_trained(tiny_empty):
    """Training rows put aside as fold -1 have no part in a fold, in the full fit, or in the statistics of the model."""
    path = tiny_empty / "data" / "folds.csv"
    folds = pd.read_csv(path, dtype={"group": str})
    aside = sorted(folds["id"][folds["fold"] == 0])[:3]
    folds.loc[folds["id"].isin(aside), ["group", "fold"]] = ["aside", -1]
    folds.to_csv(path, index=False)
    seen = []
    dataset = TASKS["biomass"].open_training

    def watched(rows, *more, **options):
        seen.append(set(rows["id"]))
        return dataset(rows, *more, **options)

    import common.tasks.stereo_data as stereo_data

    original = stereo_data.open_training
    stereo_data.open_training = watched
    try:
        tiny_data.train(tiny_empty, "--epochs", "1", "--run", "folds")
        tiny_data.train(tiny_empty, "--epochs", "1", "--run", "full", "--fold", "all")
    finally:
        stereo_data.open_training = original
    assert [len(ids) for ids in seen] == [9, 6, 15]
    assert not any(ids & set(aside) for ids in seen)
    oof = pd.concat([pd.read_csv(tiny_empty / f"runs/folds/fold{k}/oof.csv") for k in (0, 1)])
    assert len(oof) == 15 and not set(oof["id"]) & set(aside)


def test_a_full_fit_has_nothing_out_of_fold(tiny_empty, capsys):
    tiny_data.train(tiny_empty, "--fold", "all", "--run", "full")
    log = [json.loads(line) for line in (tiny_empty / "runs/full/foldall/log.jsonl").read_text().splitlines()]
    assert [line["score"] for line in log] == [None, None]
    assert len(infer(tiny_empty, run="full")) == 3
    assert "uncalibrated" in capsys.readouterr().out
    words = ("infer", "--runs", "full", "--data", "data", "--rows", "oof", "--workers", "0")
    assert tiny_data.call(*words, cwd=tiny_empty) == 2
    assert "a full fit has no validation rows" in capsys.readouterr().err


def test_dropped_ids_stay_dropped(tiny_empty):
    (tiny_empty / "drop.txt").write_text("ID100\nID107\n")
    run = tiny_data.train(tiny_empty, "--drop-ids", "drop.txt", "--run", "dropped", "--epochs", "1")
    back = infer(tiny_empty, "--rows", "oof", run="dropped")
    assert len(back) == 16 and not {"ID100", "ID107"} & set(back["id"])
    code = tiny_data.call("ensemble", "--runs", "dropped", "--no-report", "--no-baselines", cwd=tiny_empty)
    assert code == 0 and run.is_dir()


def test_several_runs_are_averaged(tiny_copy):
    tiny_data.train(tiny_copy, "--run", "second", "--seed", "1")
    words = ("--data", "data", "--workers", "0", "--out", "preds/both")
    code = tiny_data.call("infer", "--runs", "biomass-1x1-s42", "second", *words, cwd=tiny_copy)
    assert code == 0
    both = numbers(pd.read_csv(tiny_copy / "preds/both/pred.csv"))
    alone = [numbers(infer(tiny_copy, run=run)) for run in ("biomass-1x1-s42", "second")]
    np.testing.assert_allclose(both, np.mean(alone, 0), rtol=1e-6)
    facts = json.loads((tiny_copy / "preds/both/spec.json").read_text())["runs"]
    assert [fact["run"] for fact in facts] == ["biomass-1x1-s42", "second"]
