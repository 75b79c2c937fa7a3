"""Wheels of what Kaggle's image lacks, for kernels without a network: by its list of distributions, for its Python."""

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from common.errors import InputError
from kernels.payload import ROOT

PYTHONS = ("3.11", "3.12")  # images of 2025 and of 2026; wheels for both can lie in one data set
IMAGE = Path(__file__).with_name("image.txt")
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
KEPT = {"numpy", "torch", "torchvision"}  # the image's own: everything there is built against them
OPENCV = {f"opencv-{build}" for build in ("python", "python-headless", "contrib-python", "contrib-python-headless")}
ATTEMPTS = 8  # older versions to try where the newest wants another numpy or torch than the image has


def read_image(path: Path) -> dict[str, str | None]:
    """{distribution: its version, None where it is not said} of a pip freeze. InputError where it is none."""
    if not path.is_file():
        raise InputError(f"--image {path}: no such file; write it in a Kaggle notebook: pip freeze > image.txt")
    found = {}
    for line in path.read_text(errors="replace").splitlines():
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:==\s*([^\s;]+)|@ )", line)
        if match:
            found[canonicalize_name(match[1])] = match[2]
    if not found:
        raise InputError(f"--image {path}: holds no line such as numpy==2.0.2; it must be what pip freeze prints")
    if "opencv-python-headless" not in found and OPENCV & found.keys():
        found["opencv-python-headless"] = found[min(OPENCV & found.keys())]  # one build serves as well as another
    return found


def is_met(requirement: Requirement, image: dict[str, str | None]) -> bool:
    """Whether the image has it in a version that will do; one whose version is not said will."""
    name = canonicalize_name(requirement.name)
    return name in image and (image[name] is None or requirement.specifier.contains(image[name], prereleases=True))


def needed_by(wheel: Path, python: str) -> list[Requirement]:
    """What a wheel requires where it runs, without extras."""
    with zipfile.ZipFile(wheel) as opened:
        name = next(name for name in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        lines = Parser().parsestr(opened.read(name).decode()).get_all("Requires-Dist") or []
    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux", "extra": "",
             "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}  # fmt: skip
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate(default_environment() | there)]


def download(requirement: Requirement, python: str, folder: Path) -> Path:
    """The newest wheel that meets the requirement, by pip, in a new folder inside `folder`. InputError for none."""
    folder = Path(tempfile.mkdtemp(dir=folder))
    words = [word for platform in PLATFORMS for word in ("--platform", platform)]
    words += ["--python-version", python, "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *words, "-d", str(folder)]
    done = subprocess.run([*command, str(requirement)], capture_output=True, text=True)
    made = list(folder.iterdir())
    if done.returncode or len(made) != 1:
        said = (done.stderr.strip().splitlines() or ["pip wrote no wheel"])[-1]
        raise InputError(f"--wheels: {requirement} for Python {python}: {said[:200]}")
    return made[0]


def fitting_wheel(requirement: Requirement, python: str, image: dict, folder: Path) -> tuple[Path, list[Requirement]]:
    """(wheel inside `folder`, what it needs): the newest that takes the image's own numpy and torch."""
    asked, unmet = Requirement(f"{requirement.name}{requirement.specifier}"), []
    for _ in range(ATTEMPTS):
        wheel = download(asked, python, folder)
        needs = needed_by(wheel, python)
        unmet = [one for one in needs if canonicalize_name(one.name) in KEPT and not is_met(one, image)]
        if not unmet:
            return wheel, needs
        asked.specifier &= f"<{parse_wheel_filename(wheel.name)[1]}"
    raise InputError(f"--wheels: {requirement.name}: every version tried needs {unmet[0]}, which the image has not")


def lacking(image: dict[str, str | None]) -> list[Requirement]:
    """Requirements of ours that the image does not meet. InputError where torch or numpy is too old there."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted = [one for one in map(Requirement, filter(None, lines)) if not is_met(one, image)]
    for one in wanted:
        if one.name in KEPT:
            raise InputError(
                f"--image: has {one.name} {image.get(one.name)}, our code needs {one}; choose a newer image"
            )
    return wanted


def wheels_for(python: str, image: dict[str, str | None], folder: Path) -> dict[str, tuple[Path, str]]:
    """{distribution: (wheel inside `folder`, why)} of all that the image lacks, with what these need in turn."""
    queue, found = [(one, "") for one in lacking(image)], {}
    while queue:
        requirement, asker = queue.pop(0)
        name = canonicalize_name(requirement.name)
        if name in found or is_met(requirement, image):
            continue
        wheel, needs = fitting_wheel(requirement, python, image, folder)
        there = f"the image has {image[name]}" if name in image else "not in the image"
        found[name] = (
            wheel,
            f"{there}, {asker or 'we'} need{'s' if asker else ''} {requirement.name}{requirement.specifier}",
        )
        queue += [(one, name) for one in needs]
    return found


def collect_wheels(folder: Path, pythons: list[str] | None, path: Path | None) -> None:
    """Fill the folder with the wheels, for every Python; says why each is there. pythons: default all of PYTHONS."""
    image = read_image(path or IMAGE)
    with tempfile.TemporaryDirectory(prefix="landfold-wheels-") as work:
        for python in pythons or PYTHONS:
            for wheel, why in wheels_for(python, image, Path(work)).values():
                print(f"Python {python}: {wheel.name}: {why}")
                shutil.copyfile(wheel, folder / wheel.name)
    if not any(folder.iterdir()):
        raise InputError(f"--wheels: {path or IMAGE} has all that is needed; no data set of wheels is needed with it")
