"""Which libraries each task needs: its module loads, and a run of the biomass goes through, where all others are away.

As a script: test_needs.py FOLDER; it loads every task in a process of its own, forked from one that has the scripts.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import traceback
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.soak
ROOT = Path(__file__).resolve().parent.parent
# distribution -> the module that is imported of it; what only some tasks or calls need
MODULES = {
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "rasterio": "rasterio",
    "pyogrio": "pyogrio",
    "shapely": "shapely",
    "pyproj": "pyproj",
    "tifffile": "tifffile",
    "numba": "numba",
    "iterative-stratification": "iterstrat",
    "tensorboard": "tensorboard",
}
SCRIPTS = ("make_folds", "train", "infer", "ensemble")
EVERY = {"albumentations", "matplotlib", "numpy", "opencv-python-headless", "pandas", "PyYAML", "safetensors",
         "scikit-learn", "scipy", "timm", "torch", "torchvision", "tqdm"}  # fmt: skip
TILES = EVERY | {"segmentation-models-pytorch", "rasterio", "tifffile"}
PLACES = TILES | {"pyogrio", "shapely", "pyproj"}
NEEDS = {"biomass": EVERY, "glacier": TILES, "rts": PLACES, "landslide": PLACES}
IMAGE = {"torch", "torchvision"}  # no kernel brings these: they fit the image's GPU driver


def required() -> set[str]:
    """The distributions of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {line.split("#")[0].split(">=")[0].strip() for line in lines if line.split("#")[0].strip()}


def owners_of(modules) -> set[str]:
    """The distributions of requirements.txt that own these modules."""
    named, owned = {canonicalize_name(name): name for name in required()}, metadata.packages_distributions()
    owners = {canonicalize_name(one) for module in modules for one in owned.get(module, ())}
    return {named[one] for one in owners & set(named)}


class Away:
    """An import finder that says of some modules that they are not installed."""

    def __init__(self, modules: set[str]):
        self.modules = modules

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load_task(name: str, folder: Path) -> dict:
    """What is imported of one task and by the scripts' options for it, with the libraries of others away."""
    scripts = [importlib.import_module(script) for script in SCRIPTS]
    for script in scripts:
        script.parser_of(script.TASKS[name])
    found = {"names": list(scripts[0].TASKS), "modules": sorted({module.split(".")[0] for module in sys.modules})}
    if name == "biomass":
        found |= {"ends": run_biomass(folder), "refused": refused()}
    return found


def run_biomass(folder: Path) -> list[int]:
    """Exit codes of a training, its predictions and its report on the small photos in `folder`/data."""
    import tiny_data

    words = {"train": (*tiny_data.SMALL, "--epochs", "1", "--no-two-stage", "--data", "data"),
             "infer": ("--runs", "biomass-1x1-s42", "--data", "data", "--workers", "0"),
             "ensemble": ("--runs", "biomass-1x1-s42", "--data", "data", "--out", "out")}  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        return [tiny_data.call(script, *given, cwd=folder) for script, given in words.items()]


def refused() -> str:
    """Exit code and line of a script that is called for a task whose libraries are away."""
    import make_folds
    from common.errors import run_script

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = run_script(make_folds.main, ["--task", "rts"])
    return f"{code} {said.getvalue().strip()}"


def main(folder: Path) -> None:
    sys.meta_path.insert(0, Away(set(MODULES.values())))
    for script in SCRIPTS:  # these import no task and need nothing of the kind
        importlib.import_module(script)
    for name, needs in NEEDS.items():
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        try:
            sys.meta_path[0] = Away({module for one, module in MODULES.items() if one not in needs})
            (folder / f"{name}.json").write_text(json.dumps(load_task(name, folder)))
        except BaseException:
            traceback.print_exc()
        os._exit(0)


@pytest.fixture(scope="module")
def loaded(tiny_home, tmp_path_factory) -> dict:
    """{task: what load_task found}."""
    folder = tmp_path_factory.mktemp("needs")
    (folder / "data").symlink_to(tiny_home / "data")
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, timeout=240,
                          env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})  # fmt: skip
    found = {name: folder / f"{name}.json" for name in NEEDS}
    assert all(path.is_file() for path in found.values()), done.stderr
    return {name: json.loads(path.read_text()) for name, path in found.items()}


def test_the_table_knows_every_task(loaded):
    assert list(NEEDS) == loaded["rts"]["names"], "names cost no import: libraries of others were away"


@pytest.mark.parametrize("name", list(NEEDS))
def test_a_task_loads_with_what_it_needs_and_nothing_else(loaded, name):
    assert owners_of(loaded[name]["modules"]) == NEEDS[name] <= required()


def test_biomass_runs_without_the_libraries_of_maps(loaded):
    assert loaded["biomass"]["ends"] == [0, 0, 0]


def test_a_task_whose_libraries_are_away_is_refused_in_one_line(loaded):
    said = loaded["biomass"]["refused"]
    assert said.startswith("2 error: --task rts: needs ") and "which is not installed; pip install it" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("path", sorted(ROOT.glob("kernels/*/kernel.yaml")), ids=lambda path: path.parent.name)
def test_kernels_bring_what_their_task_needs(path):
    kernel = yaml.safe_load(path.read_text())
    assert not NEEDS[kernel["task"]] - IMAGE - set(kernel["packages"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
