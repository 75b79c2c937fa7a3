"""What a kernel runs on: its GPUs, the room on its disk, and the packages that its image lacks."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from common.errors import InputError

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
TOO_OLD = ("P100",)  # compute capability 6.0: current torch builds have no kernels for it
TWO_T4 = 'choose "GPU T4 x2" in the settings of the kernel (machine_shape NvidiaTeslaT4)'
# distributions that give the same module
SAME = {name: ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python")
        for name in ("opencv-python", "opencv-python-headless")}  # fmt: skip
WARN, STOP = 2e9, 200e6  # bytes of free disk


def find_gpus() -> list[str]:
    """Name and memory of each GPU, as the driver says; without importing torch, which takes ten seconds."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def check_gpus(gpus: list[str], *, wanted: bool) -> str:
    """A line on the GPUs. InputError for one that torch no longer runs on."""
    for gpu in gpus:
        if any(name in gpu for name in TOO_OLD):
            raise InputError(f"GPU {gpu}: current torch builds do not run on it; {TWO_T4}")
    if gpus:
        return f"GPUs: {len(gpus)} ({'; '.join(gpus)})"
    return f"NO GPU: the calls run on the CPU, very slowly; {TWO_T4}" if wanted else "no GPU, none is asked for"


def count_processes(gpus: list[str], forced) -> int:
    """Processes that share the work: one a GPU, or as many as LANDFOLD_PROCESSES or the kernel says."""
    if forced is None:
        return max(1, len(gpus))
    where = f"LANDFOLD_PROCESSES={forced}" if isinstance(forced, str) else f"kernel.yaml: processes {forced}"
    if not str(forced).isdigit() or int(forced) < 1:
        raise InputError(f"{where}: give a whole number of 1 or more")
    if gpus and int(forced) > len(gpus):
        raise InputError(f"{where}: there are {len(gpus)} GPUs, which processes do not share; give "
                         f"{len(gpus)} or less")  # fmt: skip
    return int(forced)


class Disk:
    """Free room of the working folder: said once when it gets low, an end when nothing is left."""

    def __init__(self, folder: Path, *, warn: float, stop: float):
        self.folder, self.warn, self.stop = folder, warn, stop
        self.warned = False

    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def say(self) -> str:
        return f"free disk of {self.folder}: {self.free() / 1e9:.1f} GB"

    def look(self) -> None:
        """Warns once below `warn` bytes; InputError below `stop`."""
        free = self.free()
        if free < self.stop:
            raise InputError(f"{self.folder}: {free / 1e6:.0f} MB of disk are left; keep less (fewer runs, "
                             "train.py --no-oof) or split the calls into two kernels")  # fmt: skip
        if free < self.warn and not self.warned:
            self.warned = True
            print(f"DISK: {free / 1e9:.2f} GB are left in {self.folder}; calls end below {self.stop / 1e6:.0f} MB",
                  flush=True)  # fmt: skip


def installed_version(name: str) -> str | None:
    """Version of a distribution, or of another one that gives the same module; None where there is none."""
    for other in (name, *SAME.get(canonicalize_name(name), ())):
        try:
            return importlib.metadata.version(other)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def meets(version: str | None, one: Requirement) -> bool:
    return version is not None and one.specifier.contains(version, prereleases=True)


def lacking(packages: list[str]) -> list[Requirement]:
    """The requirements (as in requirements.txt) that the image does not meet."""
    wanted = [Requirement(line) for line in packages]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate()]
    versions = {one.name: installed_version(one.name) for one in wanted}
    return [one for one in wanted if not meets(versions[one.name], one)]


def wheels_of(listing) -> dict[Path, tuple]:
    """{wheel: (name, version)} of the wheels in the mounts that this Python can install; `listing`: mounts.walk."""
    tags, wheels = set(sys_tags()), {}
    for path in (folder.path / name for folder in listing for name in folder.files if name.endswith(".whl")):
        try:
            name, version, _, made_for = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if made_for & tags:
            wheels[path] = (name, version)
    return wheels


def choose_wheel(one: Requirement, wheels: dict[Path, tuple]) -> Path | None:
    """The newest wheel that meets a requirement."""
    names = {canonicalize_name(name) for name in (one.name, *SAME.get(canonicalize_name(one.name), ()))}
    fitting = [(version, str(path)) for path, (name, version) in wheels.items()
               if name in names and one.specifier.contains(version, prereleases=True)]  # fmt: skip
    return Path(max(fitting)[1]) if fitting else None


def needed_by(wheel: Path) -> list[Requirement]:
    """What a wheel says it needs here, without its extras. InputError for a file that is no wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    except (zipfile.BadZipFile, StopIteration) as error:
        raise InputError(f"{wheel}: is no wheel; build the data set of wheels again") from error
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def choose_wheels(packages: list[str], listing) -> list[Path]:
    """The wheels to install for what the image lacks. InputError naming what no mount has a wheel of.

    What a wheel needs in turn must be there too. In another version than it asks for, it is replaced where a mount has
    a wheel that fits, else the image's own has to do.
    """
    waiting, wheels = lacking(packages), wheels_of(listing)
    chosen, absent = {}, []
    while waiting:
        one = waiting.pop()
        wheel = choose_wheel(one, wheels)
        if wheel is None:
            absent.append(f"{one} (here: {installed_version(one.name) or 'none'})")
        elif wheel not in chosen:
            chosen[wheel] = one
            needed = [other for other in needed_by(wheel) if not meets(installed_version(other.name), other)]
            waiting += [
                other for other in needed if installed_version(other.name) is None or choose_wheel(other, wheels)
            ]
    if absent:
        raise InputError(f"packages: the image lacks {', '.join(sorted(set(absent)))}, no mount has a wheel for this "
                         "Python; attach the data set that python kernels/build.py --wheels makes")  # fmt: skip
    return sorted(chosen)


def install(packages: list[str], listing, target: Path) -> list[str]:
    """Install what the image lacks from wheels in the mounts into `target`; lines that say so. pip gets the wheels by
    name and nothing else: it must not touch the image's torch."""
    wheels = choose_wheels(packages, listing)
    if not wheels:
        return ["packages: the image has what is needed"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-input",
               "--disable-pip-version-check", "--target", str(target), *map(str, wheels)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PIP_CONFIG_FILE": os.devnull})
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "pip said nothing").splitlines()[-1]
        raise InputError(f"packages: {' '.join(wheel.name for wheel in wheels)}: {last}; build the wheels again")
    return [f"installed {wheel.name}" for wheel in wheels]
