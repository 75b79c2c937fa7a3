"""Where the data lies: given, mounted by Kaggle in several ways, local, or the demo set."""

import pytest
import tiny_data

from common import session
from common.datasets import locate
from common.datasets.locate import find_data
from common.errors import InputError
from common.tasks import TASKS

SLUG, MARKERS = "csiro-biomass", ("train.csv",)


def never():
    raise AssertionError("no demo set may be made here")


def put(folder):
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("sample_id\n")
    return folder


@pytest.fixture
def off_kaggle(monkeypatch, tmp_path):
    """A working folder on a machine that is not Kaggle's, and the folder where its inputs would be."""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.setattr(locate, "KAGGLE_INPUT", tmp_path / "kaggle" / "input")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "kaggle" / "input"


@pytest.mark.parametrize("below", [f"{SLUG}", f"competitions/{SLUG}", f"datasets/someone/{SLUG}", f"{SLUG}/files",
                                   "a-copy-under-another-name"])  # fmt: skip
def test_every_layout_of_a_mount_is_found(off_kaggle, below):
    folder = put(off_kaggle / below)
    (off_kaggle / "weights" / "pytorch" / "1").mkdir(parents=True)
    source = find_data(SLUG, MARKERS, None, never)
    assert (source.path, source.kind) == (folder, "kaggle")


def test_two_mounts_are_an_error(off_kaggle):
    put(off_kaggle / SLUG), put(off_kaggle / "datasets" / "someone" / SLUG)
    with pytest.raises(InputError, match="both hold train.csv; choose with --data") as error:
        find_data(SLUG, MARKERS, None, never)
    assert SLUG in str(error.value) and "\n" not in str(error.value)
    chosen = off_kaggle / SLUG
    assert find_data(SLUG, MARKERS, chosen, never).path == chosen


def test_the_mount_that_carries_the_name_wins(off_kaggle):
    put(off_kaggle / "another-competition"), put(off_kaggle / "competitions" / SLUG)
    assert find_data(SLUG, MARKERS, None, never).path == off_kaggle / "competitions" / SLUG


def test_absent_on_kaggle_is_an_error(off_kaggle, monkeypatch):
    off_kaggle.mkdir(parents=True)
    with pytest.raises(InputError, match=f"attach the competition {SLUG}"):
        find_data(SLUG, MARKERS, None, never)
    off_kaggle.rmdir()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    with pytest.raises(InputError, match="no input is mounted"):
        find_data(SLUG, MARKERS, None, never)


def test_a_mount_is_not_searched_without_end(off_kaggle):
    put(off_kaggle.joinpath(*"abcdefgh"))
    with pytest.raises(InputError):
        find_data(SLUG, MARKERS, None, never)


def test_off_kaggle_local_data_then_the_demo_set(off_kaggle, tmp_path):
    demo = tmp_path / "made"
    assert find_data(SLUG, MARKERS, None, lambda: demo) == locate.Source(demo, "demo")
    put(tmp_path / "data" / SLUG)
    source = find_data(SLUG, MARKERS, None, never)
    assert source.kind == "local" and source.path.resolve() == tmp_path / "data" / SLUG


def test_a_given_folder_without_its_files_is_named(off_kaggle, tmp_path):
    with pytest.raises(InputError, match="train.csv not found there") as error:
        find_data(SLUG, MARKERS, tmp_path / "empty", never)
    assert str(tmp_path / "empty") in str(error.value)


def test_without_data_a_script_says_loudly_that_it_uses_the_demo_set(off_kaggle, tmp_path, monkeypatch, capsys):
    """The demo set is made once, into the cache, and brings its small settings with it."""
    import dataclasses

    import train

    made = []

    def make_demo(folder):
        made.append(folder)
        tiny_data.make_tiny(folder)
        (folder / "demo.json").write_text('{"best": 0.9}')
        return {"best": 0.9}

    task = dataclasses.replace(TASKS["biomass"], make_demo=make_demo)
    for _ in range(2):
        begun = session.begin(train.parser_of(task), task, ["--cell-size", "32"])
        assert begun.source.kind == "demo" and session.demo_facts(begun.source) == {"best": 0.9}
        assert begun.settings["backbone"] == task.demo_defaults["backbone"] and begun.settings["cell_size"] == 32
        assert "DEMO DATA" in capsys.readouterr().out
    assert len(made) == 1
