"""Wheels of what Kaggle's image lacks, and the notebook that installs them from the network."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kernel_folders import USER, files_of, made, refused
from packaging.requirements import Requirement

from kernels import payload, wheels


def make_wheel(folder: Path, name: str, version: str, *needs: str, tag="py3-none-any") -> None:
    """A wheel of nothing but its metadata."""
    info = f"{name}-{version}.dist-info"
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in needs),
    ]
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as made:
        made.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        made.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: {tag}\n")
        made.writestr(f"{info}/RECORD", "")


def image_of(path: Path, **changes: str | None) -> Path:
    """The list of an image that has all that requirements.txt asks for, with changes (None: not there)."""
    lines = [line.partition("#")[0].strip() for line in (payload.ROOT / "requirements.txt").read_text().splitlines()]
    have = {}
    for one in map(Requirement, filter(None, lines)):
        (have[one.name.replace("-", "_")],) = (item.version for item in one.specifier if item.operator == ">=")
    have |= changes
    path.write_text("".join(f"{name.replace('_', '-')}=={version}\n" for name, version in have.items() if version))
    return path


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of wheels that pip takes for all there is."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


def test_wheels_are_what_the_image_lacks_and_what_that_needs(index, tmp_path, capsys):
    make_wheel(index, "segmentation_models_pytorch", "0.5", "timm>=0.9", "helper>=2; python_version < '3.12'",
               "other; extra == 'more'", "torch>=2")  # fmt: skip
    make_wheel(index, "helper", "2.1", "numpy")
    make_wheel(index, "tifffile", "2024.1")
    image = image_of(tmp_path / "image.txt", segmentation_models_pytorch=None, tifffile="2020.1", torch="2.6.0+cu124")
    folder = made(tmp_path / "out", "--wheels", "--python", "3.11", "--image", image)
    assert files_of(folder) == {"segmentation_models_pytorch-0.5-py3-none-any.whl", "helper-2.1-py3-none-any.whl",
                                "tifffile-2024.1-py3-none-any.whl"}  # fmt: skip
    said = capsys.readouterr().out
    assert "not in the image, segmentation-models-pytorch needs helper>=2" in said
    assert "tifffile-2024.1-py3-none-any.whl: the image has 2020.1, we need tifffile>=2023.7" in said
    folder = made(tmp_path / "newer", "--wheels", "--python", "3.12", "--image", image)
    assert "helper-2.1-py3-none-any.whl" not in files_of(folder), "its marker says another Python"


def test_a_wheel_takes_the_numpy_of_the_image(index, tmp_path, capsys):
    for version, numpy in {"1.3": "numpy>=1.24", "1.4": "numpy>=1.26,<2", "1.5": "numpy>=2"}.items():
        make_wheel(index, "rasterio", version, numpy)
    old, new = (image_of(tmp_path / f"{v}.txt", rasterio=None, numpy=v) for v in ("1.26.4", "2.0.2"))
    words = ["--wheels", "--python", "3.11", "--image"]
    assert files_of(made(tmp_path / "old", *words, old)) == {"rasterio-1.4-py3-none-any.whl"}
    assert files_of(made(tmp_path / "new", *words, new)) == {"rasterio-1.5-py3-none-any.whl"}
    for path in index.iterdir():
        path.unlink()
    make_wheel(index, "rasterio", "1.5", "numpy>=2")
    assert "No matching distribution" in refused(capsys, "--user", USER, "--out", tmp_path / "no", *words, old)


def test_both_pythons_are_served_unless_one_is_named(index, tmp_path):
    for tag in ("cp311-cp311", "cp312-cp312"):
        make_wheel(index, "rasterio", "1.4", tag=f"{tag}-manylinux_2_28_x86_64")
    image = image_of(tmp_path / "image.txt", rasterio=None)
    assert len(files_of(made(tmp_path / "both", "--wheels", "--image", image))) == 2
    (name,) = files_of(made(tmp_path / "one", "--wheels", "--image", image, "--python", "3.12"))
    assert "cp312" in name


def test_images_that_will_not_do(index, tmp_path, capsys):
    words = ["--user", USER, "--out", tmp_path / "no", "--wheels", "--image"]
    assert "no such file; write it in a Kaggle notebook: pip freeze" in refused(capsys, *words, tmp_path / "absent")
    (tmp_path / "empty").write_text("nothing\n")
    assert "holds no line such as numpy==2.0.2" in refused(capsys, *words, tmp_path / "empty")
    line = refused(capsys, *words, image_of(tmp_path / "old.txt", torch="2.1.0+cu118"))
    assert "has torch 2.1.0+cu118, our code needs torch>=2.4; choose a newer image" in line
    assert "has all that is needed" in refused(capsys, *words, image_of(tmp_path / "whole.txt"))
    whole = image_of(tmp_path / "whole.txt", opencv_python_headless=None, opencv_contrib_python="4.12.0")
    assert "has all that is needed" in refused(capsys, *words, whole), "another build of opencv serves as well"


def test_the_list_of_the_image_lacks_what_is_known_to_lack():
    found = {one.name for one in wheels.lacking(wheels.read_image(wheels.IMAGE))}
    assert found >= {"segmentation-models-pytorch", "iterative-stratification",
                                                          "scikit-learn", "matplotlib", "shapely"}  # fmt: skip


# the interactive way


def set_up(tmp_path: Path, freeze: Path, **environment) -> tuple[subprocess.CompletedProcess, Path]:
    """setup_kaggle.sh with a Python whose pip lists `freeze` and notes what it is told to install."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    told = tmp_path / "told"
    python = tmp_path / "bin" / "python"
    python.write_text(f"""#!/usr/bin/env bash
case "$*" in
"-m pip freeze"*) cat "{freeze}" ;;
"-m pip install"*) for word in "$@"; do [ -f "$word" ] && cat "$word"; done >"{told}"; exit ${{PIP_FAILS:-0}} ;;
*) exec "{sys.executable}" "$@" ;;
esac
""")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.write_text('#!/bin/sh\n[ -n "$GPUS" ] || exit 9\nprintf "$GPUS"\n')
    for path in (python, smi):
        path.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": str(python)} | environment
    done = subprocess.run(["bash", str(payload.ROOT / "kernels" / "setup_kaggle.sh")], cwd=tmp_path, env=env,
                          capture_output=True, text=True)  # fmt: skip
    return done, told


def test_a_notebook_is_set_up_without_touching_torch(tmp_path):
    freeze = image_of(tmp_path / "freeze", iterative_stratification=None, torch="2.6.0+cu124", tifffile="2020.1")
    (tmp_path / "input" / "csiro-biomass").mkdir(parents=True)
    (tmp_path / "input" / "csiro-biomass" / "train.csv").touch()
    done, told = set_up(tmp_path, freeze, GPUS="Tesla T4, 15360 MiB\\nTesla T4, 15360 MiB\\n",
                        KAGGLE_INPUT=str(tmp_path / "input"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(told.read_text().split()) >= {
        "iterative-stratification>=0.1.7",
        "tifffile>=2023.7",
        "torch==2.6.0+cu124",
    }
    assert not [line for line in told.read_text().splitlines() if re.match("(torch|torchvision|numpy)[><]", line)]
    assert done.stdout.count("GPU: Tesla T4") == 2 and "Kaggle: yes" in done.stdout
    assert "csiro-biomass: train.csv" in done.stdout and "torchrun --nproc-per-node 2 -- train.py" in done.stdout


def test_what_a_notebook_lacks_is_said(tmp_path):
    freeze = image_of(tmp_path / "freeze")
    done, told = set_up(tmp_path, freeze, KAGGLE_INPUT=str(tmp_path / "absent"), TASK="rts")
    assert done.returncode == 0 and "Kaggle: no" in done.stdout and "GPU: none; choose GPU T4 x2" in done.stdout
    assert "installed: all" in done.stdout and not told.exists()
    assert "python train.py --config recipes/rts-baseline.yaml" in done.stdout
    done, _ = set_up(tmp_path, freeze, GPUS="Tesla P100-PCIE-16GB, 16280 MiB\\n", TASK="nothing")
    assert done.returncode == 2 and "no code for a P100" in done.stdout and "TASK=nothing: no such task" in done.stderr
    image_of(freeze, tifffile=None)
    done, _ = set_up(tmp_path, freeze, PIP_FAILS="1")
    assert done.returncode == 2 and "switch the notebook's network on" in done.stderr
    image_of(freeze, torch="2.0")
    done, _ = set_up(tmp_path, freeze)
    assert done.returncode == 2 and "has torch 2.0, our code needs torch>=2.4" in done.stderr
