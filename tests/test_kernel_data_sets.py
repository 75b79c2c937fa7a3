"""Data sets that kernels/build.py makes: weights, folds and encoders."""

import json
import re
from pathlib import Path

import tiny_data
import yaml
from kernel_folders import USER, files_of, made, refused

from common.engine.checkpoint import load_checkpoint
from common.post.blend import FORMAT


def data_set(out: Path, *words) -> Path:
    folder = made(out, "--dataset", *words)
    found = json.loads((folder / "dataset-metadata.json").read_text())
    assert found["id"] == f"{USER}/{folder.name}" and 6 <= len(found["title"]) <= 50 and len(found["licenses"]) == 1
    return folder


def predicted(run, home: Path, out: str, *words) -> bytes:
    """The submission of a run folder, or of several."""
    runs = run if isinstance(run, list) else [run]
    assert tiny_data.call("infer", "--runs", *runs, "--data", home / "data", "--out", home / out, *words, cwd=home) == 0
    return (home / out / "submission.csv").read_bytes()


def test_weights_predict_what_the_run_does(tiny_copy, tmp_path, capsys):
    own = tiny_copy / "runs" / "biomass-1x1-s42"
    folder = data_set(tmp_path / "out", "weights", own, "--licence", "CC0-1.0")
    assert folder.name == "landfold-biomass-weights" and "CC0-1.0" in (folder / "dataset-metadata.json").read_text()
    kept = folder / own.name
    each = {"args.yaml", "finished.json", "last.pt", "oof.csv"}
    assert files_of(folder) == {f"{own.name}/{name}" for name in ["folds.csv", "post.json"]} | {
        f"{own.name}/fold{fold}/{name}" for fold in (0, 1) for name in each}  # fmt: skip
    assert (kept / "fold0" / "last.pt").stat().st_size < 0.6 * (own / "fold0" / "last.pt").stat().st_size
    said = capsys.readouterr().out
    size = f"{(kept / 'fold1' / 'last.pt').stat().st_size:,}"
    assert re.search(rf"^ +{size}  {own.name}/fold1/last.pt$", said, re.M) and "10 files, " in said
    assert (folder / "contents.txt").read_text() in said
    assert predicted(kept, tiny_copy, "a") == predicted(own, tiny_copy, "b")
    assert yaml.safe_load((kept / "fold0" / "args.yaml").read_text())["data"] is None


def test_weights_of_another_choice_are_used_without_a_word(tiny_copy, tmp_path):
    own = tiny_copy / "runs" / "biomass-1x1-s42"
    for use, file in {"best": "best.pt", "last": "last.pt"}.items():
        kept = data_set(tmp_path / use, "weights", own, "--use", use, "--name", f"landfold-{use}") / own.name
        assert [path.name for path in (kept / "fold0").glob("*.pt")] == [file]
        assert load_checkpoint(kept / "fold0" / file)["use"] == use
    assert predicted(kept, tiny_copy, "a") == predicted(own, tiny_copy, "b", "--use", "last")
    assert predicted(kept, tiny_copy, "a") != predicted(own, tiny_copy, "c")


def test_a_frozen_backbone_comes_with_its_folds(tiny_copy, tmp_path):
    own = tiny_data.train(tiny_copy, "--freeze-backbone", "--store-views", "2", "--run", "frozen")
    folder = data_set(tmp_path / "out", "weights", own)
    (backbone,) = own.glob("backbone-*.safetensors")
    assert f"frozen/{backbone.name}" in files_of(folder)
    assert predicted(folder / "frozen", tiny_copy, "a") == predicted(own, tiny_copy, "b")


def test_several_runs_and_their_blend(tiny_copy, tmp_path, capsys):
    first = tiny_copy / "runs" / "biomass-1x1-s42"
    second = first.rename(first.with_name("other"))
    tiny_copy.joinpath("runs", "biomass-1x1-s42").symlink_to(second)
    blend = tmp_path / "blend.json"
    content = {"format": FORMAT, "kind": "mean", "members": ["biomass-1x1-s42", "other"], "weights": [0.5, 0.5],
               "dropped": {}, "post": None}  # fmt: skip
    blend.write_text(json.dumps(content))
    folder = data_set(tmp_path / "out", "weights", first, second, "--blend", blend)
    assert {name.split("/")[0] for name in files_of(folder)} == {"biomass-1x1-s42", "other", "blend.json"}
    copies = [folder / "other", folder / "biomass-1x1-s42"]
    assert predicted(copies, tiny_copy, "a") == predicted([second, first], tiny_copy, "b")
    words = ["--user", USER, "--out", tmp_path / "no", "--dataset", "weights"]
    assert "its member other is not among the runs" in refused(capsys, *words, first, "--blend", blend)
    assert "a second file blend.json" in refused(capsys, *words, first, second, "--blend", blend, "--blend", blend)
    assert "two runs have the same name" in refused(capsys, *words, first, first)
    blend.write_text(json.dumps(content | {"format": "x"}))
    assert "not a blend of this version" in refused(capsys, *words, first, second, "--blend", blend)
    assert not list((tmp_path / "no").glob("*")), "nothing half-made is left"


def test_unfinished_runs_are_refused(tiny_copy, tmp_path, capsys):
    own = tiny_copy / "runs" / "biomass-1x1-s42"
    words = ["--user", USER, "--out", tmp_path / "out", "--dataset", "weights"]
    (own / "fold1" / "finished.json").unlink()
    line = refused(capsys, *words, own)
    assert f"{own}: fold 1 is not finished" in line and "--resume" in line
    assert "no run folder with folds there" in refused(capsys, *words, tiny_copy / "data")
    assert "name the run folders" in refused(capsys, *words)


def test_folds_and_encoders(tiny_home, tmp_path, capsys):
    folds = tiny_home / "data" / "folds.csv"
    folder = data_set(tmp_path / "folds", "folds", folds, "--name", "landfold-biomass-folds")
    assert files_of(folder) == {"folds.csv"} and (folder / "folds.csv").read_bytes() == folds.read_bytes()
    encoder = tmp_path / "vit_small.safetensors"
    encoder.write_bytes(b"abc")
    folder = data_set(tmp_path / "encoder", "encoder", encoder)
    assert folder.name == "landfold-encoders" and (folder / encoder.name).read_bytes() == b"abc"
    words = ["--user", USER, "--out", tmp_path / "no", "--dataset"]
    for said, given in {
        "name one folds.csv": ["folds", folds, folds],
        "unknown kind; choose from": ["weight", folds],
        "give a file that ends in": ["encoder", folds],
        "a second file vit_small": ["encoder", encoder, encoder],
        "name the files": ["encoder"],
        "--use: is of --dataset weights": ["folds", folds, "--use", "ema"],
        "--image: is of --dataset wheels": ["folds", folds, "--image", folds],
        "6 to 50 small letters": ["folds", folds, "--name", "Folds!"],
        "takes no path": ["wheels", folds],
    }.items():
        assert said in refused(capsys, *words, *given)
    assert not list((tmp_path / "no").glob("*"))
