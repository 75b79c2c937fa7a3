import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pytest_collection_finish():
    """What imports made stays: collecting garbage among it took a tenth of the suite."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()


def real_data(name: str) -> Path:
    """Folder of a real data set, or a skip with the reason. Set LANDFOLD_DATA to look elsewhere."""
    folder = Path(os.environ.get("LANDFOLD_DATA", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} (set LANDFOLD_DATA)")
    return folder


@pytest.fixture
def biomass_data() -> Path:
    return real_data("biomass")


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory) -> Path:
    """A working folder: data/ with 18 small photos and two folds, and runs/biomass-1x1-s42 trained on both.

    To be read only; a test that writes takes `tiny_copy`.
    """
    import tiny_data

    home = tmp_path_factory.mktemp("tiny")
    tiny_data.make_tiny(home / "data")
    assert tiny_data.call("make_folds", "--data", "data", "--folds", "2", cwd=home) == 0
    tiny_data.train(home)
    return home


@pytest.fixture
def tiny_copy(tiny_home, tmp_path) -> Path:
    """The working folder of `tiny_home` for one test to change."""
    return shutil.copytree(tiny_home, tmp_path / "home")


@pytest.fixture
def tiny_empty(tiny_home, tmp_path) -> Path:
    """A working folder with the same data/ and folds, and no run."""
    shutil.copytree(tiny_home / "data", tmp_path / "home" / "data")
    return tmp_path / "home"


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A mounted disk of 256 KB, or a skip with the reason."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # torch keeps the file of a failed write open


@pytest.fixture
def glacier_data() -> Path:
    return real_data("glacier")


@pytest.fixture(scope="session")
def tiles_home(tmp_path_factory) -> Path:
    """A working folder: data/ with 9 small glacier tiles and two folds, and runs/one and runs/two trained on both.

    To be read only; a test that writes takes `tiles_copy`.
    """
    import tiny_tiles

    home = tmp_path_factory.mktemp("tiles")
    tiny_tiles.make_tiles(home / "data", tiles=9)
    tiny_tiles.call(home, "make_folds", "--task", "glacier", "--data", "data", "--folds", "2")
    for run, seed in (("one", "42"), ("two", "7")):
        tiny_tiles.train(home, "--seed", seed, "--epochs", "4", "--lr", "1e-2", run=run)
    return home


@pytest.fixture
def tiles_copy(tiles_home, tmp_path) -> Path:
    """The working folder of `tiles_home` for one test to change."""
    return shutil.copytree(tiles_home, tmp_path / "home")


@pytest.fixture
def tiles_empty(tiles_home, tmp_path) -> Path:
    """A working folder with the same data/ and folds, and no run."""
    shutil.copytree(tiles_home / "data", tmp_path / "home" / "data")
    return tmp_path / "home"


@pytest.fixture
def rts_data() -> Path:
    return real_data("rts")


@pytest.fixture(scope="session")
def slumps_home(tmp_path_factory) -> Path:
    """A working folder: data/ with 24 small thaw-slump tiles in six regions, split by splits.yaml, and runs/one and
    runs/two trained on it.

    To be read only; a test that writes takes `slumps_copy`.
    """
    import tiny_rts

    home = tmp_path_factory.mktemp("slumps")
    tiny_rts.make_rts(home / "data")
    tiny_rts.call(home, "make_folds", "--task", "rts", "--data", "data")
    for run, seed in (("one", "42"), ("two", "7")):
        tiny_rts.train(home, "--seed", seed, *tiny_rts.LEARNING, run=run)
    return home


@pytest.fixture
def slumps_copy(slumps_home, tmp_path) -> Path:
    """The working folder of `slumps_home` for one test to change."""
    return shutil.copytree(slumps_home, tmp_path / "home")


@pytest.fixture
def slumps_empty(slumps_home, tmp_path) -> Path:
    """A working folder with the same data/ and folds, and no run."""
    shutil.copytree(slumps_home / "data", tmp_path / "home" / "data")
    return tmp_path / "home"


@pytest.fixture
def landslide_data() -> Path:
    return real_data("landslide")


@pytest.fixture(scope="session")
def hills_home(tmp_path_factory) -> Path:
    """A working folder: data/ with 45 small overlapping tiles of ordered classes in two folds of blocks, and runs/one
    and runs/two trained on both.

    To be read only; a test that writes takes `hills_copy`.
    """
    import tiny_landslide

    home = tmp_path_factory.mktemp("hills")
    tiny_landslide.make_hills(home / "data")
    tiny_landslide.call(home, "make_folds", "--task", "landslide", "--data", "data", "--folds", "2")
    for run, seed in (("one", "42"), ("two", "7")):
        tiny_landslide.train(home, "--seed", seed, *tiny_landslide.LEARNING, run=run)
    return home


@pytest.fixture
def hills_copy(hills_home, tmp_path) -> Path:
    """The working folder of `hills_home` for one test to change."""
    return shutil.copytree(hills_home, tmp_path / "home")


@pytest.fixture
def hills_empty(hills_home, tmp_path) -> Path:
    """A working folder with the same data/ and folds, and no run."""
    shutil.copytree(hills_home / "data", tmp_path / "home" / "data")
    return tmp_path / "home"
