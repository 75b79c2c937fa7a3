"""Strangers' tables, settings, polygons and checkpoints: read or refused in one line, whatever their bytes are."""

import codecs
import io
import json
import os
import pickle
import sqlite3

import fuzz_tables
import pandas as pd
import pickle_mutations
import pytest
import text_mutations
import timm
import torch
import yaml
from fuzz_engine import table
from text_seeds import TinyTask, checkpoint_content, polygons

from common import table_files, text_files, torch_files
from common.datasets.biomass_table import OUTPUTS, read_rows, read_test
from common.datasets.vectors import read_polygons
from common.engine.checkpoint import build, load_checkpoint
from common.engine.runs import read_finished, read_makers, read_settings
from common.errors import FROM_WORKER, LONGEST, InputError
from common.models.backbone import create_net
from common.outputs.mask_sets import read_set
from common.outputs.predictions import read_predictions
from common.settings import read_config
from common.table_files import check_names, paths_inside, read_csv
from common.text_files import read_json, read_text, read_yaml


def seen_sound(results) -> None:
    """No fault, and every reader has read something and refused something."""
    faults = [f"{result.name}, input {number}: {said}" for result in results for number, said in result.faults]
    assert not faults, "\n".join(faults)
    assert all(result.read for result in results), table(results)


def test_every_reader_reads_or_refuses(tmp_path):
    results = fuzz_tables.run(3, tmp_path)
    seen_sound(results)
    assert len(results) == 34 and sum(result.inputs for result in results) == 3 * 34
    assert sum(result.refused for result in results) > 34


@pytest.mark.soak
def test_every_reader_reads_or_refuses_thousands(tmp_path, capsys):
    results = fuzz_tables.run(int(os.environ.get("LANDFOLD_INPUTS", "400")), tmp_path, seed=1)
    with capsys.disabled():
        print("\n" + table(results))
    seen_sound(results)
    assert all(result.refused for result in results)


# what a table names


@pytest.mark.parametrize("name", [
    "/etc/passwd", "../secret.jpg", "train/../../secret.jpg", "C:\\x.jpg", "..\\x.jpg", "http://a.invalid/x.jpg",
    "/vsicurl/http://a.invalid/x", "a\0b", "", " ", None, 7.0, "x" * 5000,
])  # fmt: skip
def test_a_path_that_leads_out_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="test.csv: .*(leads out|is no path)"):
        paths_inside(tmp_path, ["train/a.jpg", name], tmp_path / "test.csv")


def test_links_may_lead_about_inside_and_not_out(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home / "real", other):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"")
    (home / "inside").symlink_to(home / "real")
    (home / "outside").symlink_to(other)
    (home / "real" / "b.jpg").symlink_to(other / "a.jpg")
    (tmp_path / "mount").symlink_to(home)
    made = paths_inside(tmp_path / "mount", ["inside/a.jpg", "real/a.jpg", "not/there.jpg"], "t.csv")
    assert made == [str(tmp_path / "mount" / name) for name in ("inside/a.jpg", "real/a.jpg", "not/there.jpg")]
    for name in ("outside/a.jpg", "real/b.jpg"):
        with pytest.raises(InputError, match="t.csv: .*by a link"):
            paths_inside(home, [name], "t.csv")


@pytest.mark.parametrize("column, read", [("train", read_rows), ("test", read_test)])
def test_photos_lie_in_the_data_folder(tmp_path, column, read):
    facts = {"Sampling_Date": "2015/9/4", "State": "Tas", "Species": "Clover", "target": 1.0}
    lines = [{"sample_id": f"a__{name}", "image_path": "../a.jpg", "target_name": name} | facts for name in OUTPUTS]
    pd.DataFrame(lines).to_csv(tmp_path / f"{column}.csv", index=False)
    with pytest.raises(InputError, match=f"{column}.csv: '../a.jpg' leads out"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "", "a\nb", "x" * 200, "\\a"])
def test_ids_that_files_are_named_after(tmp_path, name):
    with pytest.raises(InputError, match="pred.csv: the id .* cannot name a file"):
        check_names(["good", name], "pred.csv")


def test_a_set_of_maps_names_no_file_elsewhere(tmp_path):
    path = tmp_path / "deep" / "set" / "pred.csv"
    path.parent.mkdir(parents=True)
    frame = pd.DataFrame({"id": ["a"], "nodata": 0, "prob": "../other/a.npz"})
    frame.to_csv(path, index=False)
    assert read_set(path)["prob"].tolist() == [str(path.parent / "../other/a.npz")]  # another set may lend its maps
    for change in ({"prob": "../../../a.npz"}, {"prob": "/etc/a.npz"}, {"prob": "a.pkl"}, {"id": "../a"},
                   {"nodata": -1}, {"nodata": 1.5}, {"n_0_0": 1, "n_0_1": 2}):  # fmt: skip
        frame.assign(**change).to_csv(path, index=False)
        with pytest.raises(InputError, match="pred.csv: "):
            read_set(path)


# tables


def refused(tmp_path, content: bytes, said: str, read=read_csv) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"t.csv: .*{said}"):
        read(path)


@pytest.mark.parametrize("content, said", [
    ("a,b\n1,2\n".encode("utf-16"), "UTF-16"), (b"a,b\n1,\xe9\n", "no UTF-8"), (b"a,b\n1,\0\n", "NUL"),
    (b"a,a\n1,2\n", "a is there twice"), (b"a,b\n0,2,9\n1,4,9\n", "more fields than its header"), (b"", "empty"),
    (b"\n\n", "empty"), (b"a,b\n1,2\n1,2,3\n", "Expected 2"),
    (b"a,b\n1," + b"x" * 34_000_000, "line of more than 16 MB"),
    (",".join(f"c{k}" for k in range(5000)).encode(), "5,000 columns"), (b'a,b\n"1,2\n', "EOF inside string"),
    (b"x" * 1001 + b",b\n", "name of a column has more than 1,000 letters"),
])  # fmt: skip
def test_tables_that_are_none(tmp_path, content, said):
    refused(tmp_path, content, said)


def test_lists_of_many_ids_on_one_line_are_read(tmp_path):
    """As the table of final tests and the facts of a store keep them: 200,000 tiles."""
    ids = json.dumps([f"tile_{k:06d}" for k in range(200_000)])
    pd.DataFrame([{"run": "a", "ids": ids}]).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.json").write_text(ids)
    assert read_csv(tmp_path / "t.csv", text=None)["ids"].tolist() == [ids]
    assert len(read_json(tmp_path / "t.json", wanted=list)) == 200_000


def test_a_table_as_other_programs_write_it(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(codecs.BOM_UTF8 + b"id,value\r\n007,1.5\r\n\xc3\xa9,2\r\n")
    made = read_csv(path, text=["id"])
    assert made["id"].tolist() == ["007", "\u00e9"] and made["value"].tolist() == [1.5, 2.0]
    assert read_csv(path, text=None)["value"].tolist() == ["1.5", "2"]


def test_a_table_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "CELLS", 50)
    refused(tmp_path, b"a,b\n" + b"1,2\n" * 40, "more than 50 cells")
    monkeypatch.setitem(text_files.LIMITS, "CSV", 100)
    refused(tmp_path, b"a,b\n" + b"1,2\n" * 40, "larger than")


@pytest.mark.parametrize("value", ["1e999", "inf", "1_000", "0x10", "", "\uff10x"])
def test_numbers_that_are_none(tmp_path, value):
    line = {"id": "a", **dict.fromkeys(OUTPUTS, 1.0)} | {OUTPUTS[2]: value}
    pd.DataFrame([line]).to_csv(tmp_path / "pred.csv", index=False)
    with pytest.raises(InputError, match=f"pred.csv: {OUTPUTS[2]} is not a finite number for a"):
        read_predictions(tmp_path / "pred.csv", OUTPUTS)


def test_what_is_no_plain_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match="t.csv: not found, or no plain file"):
        read_csv(tmp_path / "t.csv")
    with pytest.raises(InputError, match="zero: not found, or no plain file"):
        read_text("/dev/zero")


# settings and facts


@pytest.mark.parametrize("text, said", [
    (text_mutations.LAUGHS, "aliases written out"), (text_mutations.MERGES, "aliases written out"),
    ("&a [*a]", "inside what it names"), ("a: 1\nb: 2\na: 3", "a is given twice"), ("[" * 999, "nested too deep"),
    ("!!python/object/apply:os.getcwd []", "could not determine a constructor"), ("a: !!int x", "invalid literal"),
    ("a: 2001-99-99", "month"), ("x" * 300_000, "larger than .25 MB"), ("a: \0", "NUL"), ("[a", "expected"),
])  # fmt: skip
def test_settings_that_are_none(tmp_path, text, said):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InputError, match=f"--config .*t.yaml: cannot be read as YAML .*{said.replace('.25', '0.25')}"):
        read_config(tmp_path / "t.yaml")


def test_aliases_that_do_not_multiply_are_read(tmp_path):
    shared = [0.1, 0.2]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"lr": shared, "decay": shared, "warm": {"up": shared}}))
    assert "&id001" in (tmp_path / "t.yaml").read_text()
    assert read_yaml(tmp_path / "t.yaml") == {"lr": shared, "decay": shared, "warm": {"up": shared}}


def test_a_setting_under_two_names(tmp_path):
    (tmp_path / "t.yaml").write_text("batch-size: 4\nbatch_size: 8\n")
    with pytest.raises(InputError, match="given twice, with a hyphen"):
        read_config(tmp_path / "t.yaml")


@pytest.mark.parametrize("text, said", [
    ("[" * 3000, "nested too deep"), ('{"a": 1, "a": 2}', "a key is given twice"), ('{"a": "\\ud800"}', "surrogates"),
    ("[1]", "holds list, not dict"), ('{"a": ' + "9" * 5000 + "}", "digit"), ("{", "Expecting"),
])  # fmt: skip
def test_facts_that_are_none(tmp_path, text, said):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=f"t.json: .*{said}"):
        read_json(tmp_path / "t.json")


def test_a_setting_that_a_run_lacks_names_its_file(tmp_path):
    (tmp_path / "args.yaml").write_text("use: ema\n")
    settings = read_settings(tmp_path) | {"cache": "cache"}
    assert settings["use"] == "ema" and settings["cache"] == "cache" and settings.get("grid") is None
    with pytest.raises(InputError, match="args.yaml: has no setting label_map"):
        settings["label_map"]


def test_a_message_has_an_end():
    said = str(InputError("train.csv: " + "x" * 10_000 + "; correct it"))
    assert len(said) <= LONGEST + 3 and said.startswith("train.csv: x") and said.endswith("x; correct it")
    worker = InputError(
        f"Caught InputError in a loader process. {'trace ' * 300}{FROM_WORKER}{'a' * 700}, copy it again"
    )
    assert str(worker).rpartition(FROM_WORKER)[2] == "a" * 700 + ", copy it again", "what is shown of it"


# polygons


@pytest.mark.parametrize("name, content", [
    ("a.geojson", b"<OGRVRTDataSource><OGRVRTLayer name='x'/></OGRVRTDataSource>"), ("a.gpkg", b"{}"), ("a.shp", b"{}"),
    ("a.json", b"SQLite format 3\0"), ("a.geojson", b""),
])  # fmt: skip
def test_a_vector_file_is_what_its_name_says(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="by its content"):
        read_polygons(tmp_path / name, 0)


def test_a_geopackage_whose_layer_is_a_program(tmp_path):
    (tmp_path / "a.gpkg").write_bytes(polygons("GPKG", ".gpkg", tmp_path))
    assert len(read_polygons(tmp_path / "a.gpkg", 0)[0]) == 2
    with sqlite3.connect(tmp_path / "a.gpkg") as base:
        base.execute("ALTER TABLE whole RENAME TO other")
        base.execute("CREATE VIEW whole AS WITH RECURSIVE n(fid) AS (SELECT 1 UNION ALL SELECT fid + 1 FROM n) "
                     "SELECT fid, (SELECT geom FROM other LIMIT 1) AS geom FROM n")  # fmt: skip
        base.execute("UPDATE gpkg_contents SET table_name = 'whole' WHERE table_name = 'other'")
    base.close()
    with pytest.raises(InputError, match="'whole' is no table in it"):
        read_polygons(tmp_path / "a.gpkg", 1)


# checkpoints


@pytest.mark.parametrize("number", range(len(pickle_mutations.EVIL)))
@pytest.mark.parametrize("read", [load_checkpoint, torch_files.read_torch])
def test_nothing_evil_is_executed_or_held(tmp_path, number, read):
    whole = io.BytesIO()
    torch.save({"format": 1, "spec": {}, "state_dict": {}}, whole)
    (tmp_path / "a.pt").write_bytes(pickle_mutations.EVIL[number](whole.getvalue()))
    options = {} if read is load_checkpoint else {"remedy": "fetch it again"}
    with pytest.raises(InputError, match="a.pt: "):
        read(tmp_path / "a.pt", **options)
    assert not pickle_mutations.CANARY.exists()


def test_the_canary_sings(tmp_path):
    """A pickle of this kind is executed where it is loaded without care."""
    pickle.loads(pickle.dumps(pickle_mutations.Evil()))
    assert pickle_mutations.CANARY.is_dir()
    pickle_mutations.CANARY.rmdir()


def test_the_frozen_part_lies_beside_the_run(tmp_path):
    content = checkpoint_content() | {"external": {"file": "../../../etc/x.safetensors", "prefix": "", "sha256": "0"}}
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(InputError, match="names its frozen backbone by a path"):
        build(tmp_path / "last.pt", {"tiny": TinyTask})


@pytest.mark.parametrize("change, said", [
    ({"model": {"width": 2**20}, "outputs": list(range(2**11))}, "far larger than its"), ({"model": {}}, "KeyError"),
    ({"model": {"width": 16}}, "do not fit"), ({"outputs": 7}, "TypeError"), ({"task": ["tiny"]}, "not known here"),
])  # fmt: skip
def test_a_spec_that_describes_no_such_model(tmp_path, change, said):
    content = checkpoint_content()
    torch.save(content | {"spec": content["spec"] | change}, tmp_path / "last.pt")
    with pytest.raises(InputError, match=f"last.pt: .*{said}"):
        build(tmp_path / "last.pt", {"tiny": TinyTask})


def test_a_backbone_is_never_fetched_by_its_name(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(InputError, match="--backbone hf-hub:evil/model: timm does not know it"):
        create_net("hf-hub:evil/model", cell_size=32, drop_path=0.0)


def test_facts_of_a_fold_are_numbers(tmp_path):
    for line in ({"score": "high", "seconds": 1.0}, {"score": None}, {"score": 1, "seconds": 1, "facts": [1]}, [1]):
        (tmp_path / "finished.json").write_text(json.dumps(line))
        with pytest.raises(InputError, match="finished.json: "):
            read_finished(tmp_path)
    for made in ({}, {"runs": []}, {"runs": [7]}, {"runs": [{"task": ["rts"]}]}):
        (tmp_path / "spec.json").write_text(json.dumps(made))
        with pytest.raises(InputError, match="spec.json: "):
            read_makers(tmp_path)
    (tmp_path / "spec.json").unlink()
    assert read_makers(tmp_path) == [{}]
