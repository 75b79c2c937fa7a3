"""Where the data lies: given, mounted by Kaggle in several ways, local, or the demo set."""

import contextlib
import os

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
                                   "a-copy-under-another-name", f"models/someone/{SLUG}/pytorch/default/1",
                                   "models/someone/photos/other/default/12/files"])  # fmt: skip
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


@pytest.fixture
def entries(monkeypatch):
    """Names that were read of each folder, by path."""
    read, scandir = {}, os.scandir

    @contextlib.contextmanager
    def counting(folder):
        def yielded():
            for entry in whole:
                read.setdefault(str(folder), []).append(entry.name)
                yield entry

        with scandir(folder) as whole:
            yield yielded()

    monkeypatch.setattr(locate.os, "scandir", counting)
    return read


def fill(folder, count, name="{:05d}.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        (folder / name.format(k)).touch()
    return folder


def test_folders_of_images_cost_nothing(off_kaggle, entries):
    """Of 3,000 photos a part is read, and what lies below them is not looked at; the marker beside them is found."""
    photos = fill(put(off_kaggle / "competitions" / SLUG) / "train", 3000)
    other = fill(off_kaggle / "someones-photos" / "images", 3000)
    put(other / "deeper")
    assert find_data(SLUG, MARKERS, None, never).path == photos.parent
    assert str(photos) not in entries, "below what was found"
    assert len(entries[str(other)]) == locate.ENTRIES and str(other / "deeper") not in entries
    assert sum(map(len, entries.values())) < locate.ENTRIES + 20


def test_nothing_is_looked_for_below_many_files(off_kaggle):
    """A folder of images may have folders; beside a few files there may be anything."""
    put(fill(off_kaggle / "photos", locate.FILES + 1) / SLUG)
    with pytest.raises(InputError, match="no train.csv in any mount"):
        find_data(SLUG, MARKERS, None, never)
    few = put(fill(off_kaggle / "few", locate.FILES) / SLUG)
    assert find_data(SLUG, MARKERS, None, never).path == few


def test_a_marker_among_thousands_of_files_is_found(off_kaggle, entries):
    folder = put(fill(off_kaggle / "flat", 3000) / "sub").parent
    (folder / "test.csv").touch()
    assert find_data(SLUG, ("test.csv",), None, never).path == folder, "a name is asked for, not read"
    fill(off_kaggle / "hkh", 3000, "slice_{}_img_0.npy")
    assert find_data("hkh", ("Train/Band1|slice_*_img_*.npy",), None, never).path == off_kaggle / "hkh"
    assert len(entries[str(off_kaggle / "hkh")]) == locate.ENTRIES


def test_a_mount_of_folders_without_end_is_given_up(off_kaggle, entries, monkeypatch):
    monkeypatch.setattr(locate, "FOLDERS", 20)
    for k in range(40):
        (off_kaggle / "scenes" / f"s{k:02d}" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="no train.csv in any mount"):
        find_data(SLUG, MARKERS, None, never)
    assert len(entries) <= 20
    put(off_kaggle / "zoo")
    assert find_data(SLUG, MARKERS, None, never).path == off_kaggle / "zoo", "mounts come before what is in them"


def test_a_mount_that_cannot_be_read_hides_no_other(off_kaggle, monkeypatch):
    put(off_kaggle / "closed" / "inner"), put(off_kaggle / SLUG)
    scandir = os.scandir

    def refusing(folder):
        if folder == off_kaggle / "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(locate.os, "scandir", refusing)
    assert find_data(SLUG, MARKERS, None, never).path == off_kaggle / SLUG


def test_hidden_folders_and_the_input_folder_itself_are_no_mounts(off_kaggle):
    put(off_kaggle / ".trash" / SLUG)
    (off_kaggle / "train.csv").touch()
    with pytest.raises(InputError, match="no train.csv in any mount"):
        find_data(SLUG, MARKERS, None, never)


def test_the_name_counts_below_the_mounts_alone(tmp_path):
    """A folder above that happens to be called like the competition names none of them."""
    root = tmp_path / SLUG / "input"
    put(root / "another"), put(root / "competitions" / SLUG)
    assert find_data(SLUG, MARKERS, None, never, root=root).path == root / "competitions" / SLUG


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
