"""What lies in the mounts of a kernel: run folders, single files, folders to be copied."""

import os
from pathlib import Path

import pytest
from fake_scripts import fake_kernel

from common.datasets import locate
from common.errors import InputError
from kernels import copies, mounts

LAYOUTS = ["weights", "competitions/weights", "datasets/me/weights", "notebooks/me/weights",
           "models/me/weights/pytorch/default/1"]  # fmt: skip


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return fake_kernel(tmp_path, monkeypatch)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def resolved(root: Path, *words: str) -> list[str]:
    return mounts.resolve(list(words), mounts.walk(root), root)


@pytest.mark.parametrize("mount", LAYOUTS)
def test_runs_and_files_are_found_in_every_layout(tmp_path, mount):
    put(tmp_path / mount, "grid/fold0/args.yaml", "grid/folds.csv", "sub/blend.json")
    assert resolved(tmp_path, "--runs", "{run:grid}", "--blend={find:blend.json}") == [
        "--runs", str(tmp_path / mount / "grid"), f"--blend={tmp_path / mount / 'sub' / 'blend.json'}"
    ]  # fmt: skip
    assert mounts.describe(tmp_path, mounts.walk(tmp_path)) == [f"mount {tmp_path / mount}: grid/, sub/"]


def test_files_of_a_run_are_its_own(tmp_path):
    """Every run has a folds.csv; the one asked for lies outside."""
    put(
        tmp_path,
        "w/grid/fold0/args.yaml",
        "w/grid/folds.csv",
        "w/grid/fold0/deep/folds.csv",
        "f/folds.csv",
        "output/runs/begun/folds.csv",
    )  # the last was stopped before its first epoch
    assert resolved(tmp_path, "{find:folds.csv}") == [str(tmp_path / "f" / "folds.csv")]


def test_patterns_folders_and_longer_names(tmp_path):
    put(tmp_path, "a/enc/vit_small.safetensors", "b/enc2/other.bin", "b/deep/enc2.bin", "c/deep/x.bin")
    found = resolved(tmp_path, "{find:*.safetensors}", "{find:enc2}", "{find:c/deep}", "{find:b/*/enc2.bin}")
    assert found == [str(tmp_path / name) for name in ("a/enc/vit_small.safetensors", "b/enc2", "c/deep",
                                                       "b/deep/enc2.bin")]  # fmt: skip


def test_what_is_not_there_is_named(tmp_path):
    put(tmp_path, "w/grid/fold0/args.yaml", "w/blend/blend.json")
    with pytest.raises(InputError, match=r"no run folder big in any mount \(there are grid\); attach"):
        resolved(tmp_path, "{run:big}")
    with pytest.raises(InputError, match="no folds.csv in any mount; attach the data set that holds it"):
        resolved(tmp_path, "{find:folds.csv}")
    with pytest.raises(InputError, match="no run folder blend"):  # a folder, but of no run
        resolved(tmp_path, "{run:blend}")


def test_two_that_match_are_named(tmp_path):
    put(tmp_path, "old/grid/fold0/args.yaml", "new/grid/fold1/args.yaml", "old/b.json", "new/b.json")
    for word, name in (("{run:grid}", "grid"), ("{find:b.json}", "b.json")):
        with pytest.raises(InputError) as error:
            resolved(tmp_path, word)
        assert f"{tmp_path / 'new' / name} and {tmp_path / 'old' / name} are all" in str(error.value)


def test_other_words_are_left_alone(tmp_path):
    assert resolved(tmp_path, "{code}", "plain", "{}") == ["{code}", "plain", "{}"]


def test_the_walk_is_bounded(tmp_path, monkeypatch):
    """Neither below images, nor deeper than any mount is, nor into hidden folders, nor through all of a huge one."""
    put(tmp_path, *[f"images/{number}.png" for number in range(51)], "images/below/x.json", "many/below/x.json",
        *[f"many/{number}.png" for number in range(50)], "1/2/3/4/5/6/7/8/deep.json", "1/2/3/4/5/6/7/8/9/too.json",
        ".hidden/h.json")  # fmt: skip
    found = mounts.walk(tmp_path)
    assert [path.parent.parent.name for path in mounts.things_named(found, "x.json")] == ["many"]
    assert len(mounts.things_named(found, "50.png")) == 1  # the folder itself is looked at
    assert mounts.things_named(found, "deep.json") and not mounts.things_named(found, "too.json")
    assert not mounts.things_named(found, "h.json")
    monkeypatch.setattr(locate, "ENTRIES", 5)
    assert len(mounts.walk(tmp_path / "images")[0].files) <= 5


def test_a_link_to_itself_has_an_end(tmp_path):
    put(tmp_path, "a/b.json")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    assert len(mounts.walk(tmp_path)) == mounts.DEPTH + 1


def test_no_mounts(tmp_path):
    assert mounts.walk(tmp_path / "none") == []
    assert mounts.describe(tmp_path / "none", []) == [f"no mounts below {tmp_path / 'none'}"]


def test_a_missing_run_ends_the_kernel_before_any_call(fake, capsys):
    assert fake.run("infer.py --runs run --out a", "infer.py --runs {run:grid} --out b") == 2
    assert capsys.readouterr().err.count("\n") == 1 and not fake.noted()


def test_a_folder_is_copied_whole_or_not_at_all(tmp_path, small_disk, monkeypatch):
    """A disk of 256 KB: what does not fit leaves what was there, also where the room is gone in the middle."""
    put(tmp_path / "small", "a/b.txt")
    put(tmp_path / "large", "c.txt")
    (tmp_path / "large" / "big").write_bytes(bytes(500_000))
    target = copies.copy_folder(tmp_path / "small", small_disk / "runs" / "target")
    with pytest.raises(InputError, match=r"large: has 1 MB, .*/runs 0 MB free; attach less|large: 1 MB"):
        copies.copy_folder(tmp_path / "large", target)
    monkeypatch.setattr(copies, "size_of", lambda folder: 0)
    with pytest.raises(InputError, match="large: not copied to .*No space left"):
        copies.copy_folder(tmp_path / "large", target)
    assert [str(path.relative_to(target)) for path in sorted(target.rglob("*"))] == ["a", "a/b.txt"]
    assert os.listdir(target.parent) == ["target"]
