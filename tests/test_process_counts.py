"""infer.py by 1, 2 and 3 processes on the same rows and the same list of scenes, with views: the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sampler_runs
import tiny_landslide
import tiny_scenes
import tiny_tiles
from children import free_port

COUNTS = (1, 2, 3)
DRIVER = Path(__file__).resolve().parent / "infer_driver.py"
TRAINED = {"biomass": "augmented", "glacier": "balanced", "rts": "ratio", "landslide": "balanced"}
COMMON = ("--device-type", "cpu", "--workers", "0", "--fold")
JOBS = {
    "biomass-rows": ("--tta", "hflip", "vflip", "swap"),
    "biomass-oof": ("--rows", "oof", "--tta", "swap"),
    "glacier-rows": ("--tta", "hflip", "rot90"),
    "glacier-oof": ("--rows", "oof", "--tta", "vflip"),
    "rts-rows": ("--tta", "hflip", "rot90"),
    "rts-scenes": ("--scene", "slumps", "--window", "64", "--tta", "hflip", "rot90", "--scales", ".5", "1"),
    "landslide-oof": ("--rows", "oof", "--tta", "hflip"),
    "landslide-scenes": ("--scene", "hills", "--window", "32", "--tta", "hflip"),
}
pytestmark = pytest.mark.soak


def words_of(name: str, count: int) -> list[str]:
    task = name.split("-")[0]
    fold = sampler_runs.WORDS[task][sampler_runs.WORDS[task].index("--fold") + 1]
    data = () if "--scene" in JOBS[name] else ("--data", task)
    words = ("--task", task, *data, "--runs", f"runs/{task}", *COMMON, fold, *JOBS[name])
    return [*words, "--out", f"by{count}/{name}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A working folder with by<count>/<job>/ of all jobs and counts of processes."""
    home = sampler_runs.make_data(tmp_path_factory.mktemp("counts"))
    for task, sampler in TRAINED.items():
        whole = () if task == "biomass" else ("--crops-per-epoch", "8")  # batch norm takes no batch of one
        words = sampler_runs.words_of(task, sampler, *whole, "--epochs", "2", "--run", task)
        tiny_tiles.call(home, "train", *words)
    for seed in range(5):
        tiny_scenes.write_scene(home / f"slumps/{seed}.tif", tiny_scenes.draw_scene(140, 150, seed=seed)[0])
    tiny_landslide.make_scenes(home / "hills", 4)
    for count in COUNTS:
        (home / "jobs.json").write_text(json.dumps([words_of(name, count) for name in JOBS]))
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-addr",
                 "127.0.0.1", "--master-port", str(free_port()), str(DRIVER), "jobs.json"]  # fmt: skip
        done = subprocess.run(words, cwd=home, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        assert (count > 1) == ("mapped before" in done.stdout), "the scenes were shared"
    return home


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("count", COUNTS[1:])
@pytest.mark.parametrize("name", JOBS)
def test_any_number_of_processes_ends_with_the_same_bytes(home, name, count):
    one, more = files_of(home / "by1" / name), files_of(home / f"by{count}" / name)
    assert sorted(one) == sorted(more) and one
    assert [path for path in one if one[path] != more[path]] == []
