"""Every benchmark, one by one, and the page of their results: what is ours beside the library a user would pick.

    python benchmarks/run_all.py                          # all of them -> benchmarks/RESULTS.md
    python benchmarks/run_all.py --only objects texture --out some.md

Each runs in a process of its own, as `python benchmarks/<name>.py` does; its table and what it prints beside go to the
page as they are. One whose library is missing is said to have not run, and why; one that misses what it is held to, or
breaks, is said to have failed, and the exit code is then 1. Figures are worth what the machine was doing: the page says
how much of its cores other programs took during each.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import InputError, run_script
from common.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "albumentations", "numpy", "scipy",
             "scikit-learn", "scikit-image", "opencv-python-headless", "numba", "pandas", "rasterio", "geopandas",
             "pydensecrf2", "pydensecrf")  # fmt: skip
BUSY = 0.1  # cores that other programs take from which on the figures are those of a busy machine
RATIOS = """ratio: theirs / ours of the same run, so that above 1 ours needs less; of seconds by the clock, and "of CPU
time" by the processor, which other programs on the machine disturb less. What stands without one is a figure that no
library has a counterpart for."""


@dataclass(frozen=True)
class Outcome:
    """A benchmark that ran: its first docstring line, exit code, what it printed, wall and processor seconds, cores
    that other programs took meanwhile (None where the system does not say)."""

    name: str
    title: str
    code: int
    printed: str
    complaints: str
    seconds: float
    cpu: float
    others: float | None

    @property
    def lacking(self) -> str:
        """The library whose absence stopped it, or nothing."""
        found = re.search(r"^(?:ModuleNotFoundError|ImportError): .*?named '([\w.]+)'", self.complaints, re.M)
        return found[1] if self.code and found and not (ROOT / found[1].split(".")[0]).exists() else ""

    @property
    def failed(self) -> bool:
        return self.code != 0 and not self.lacking


def benchmarks_in(folder: Path) -> dict[str, Path]:
    """{name: file} of those that can be run by themselves: they define main."""
    found = {path.stem: path for path in sorted(folder.glob("*.py")) if path.name != Path(__file__).name}
    return {name: path for name, path in found.items() if re.search(r"^def main\(", path.read_text(), re.M)}


def title_of(path: Path) -> str:
    return re.match(r'"""(.*?)(?:\n|""")', path.read_text())[1]


def run_one(name: str, path: Path, limit: float) -> Outcome:
    """The benchmark in a process of its own, `limit` seconds at most."""
    began, before, busy = time.perf_counter(), os.times(), busy_seconds()
    try:
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=limit, cwd=ROOT)
        code, printed, complaints = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        code, printed = 124, (error.stdout or b"").decode(errors="replace")
        complaints = f"stopped: took longer than {limit:g} s"
    seconds, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    others = None if busy is None else max(busy_seconds() - busy - cpu, 0) / seconds
    return Outcome(name, title_of(path), code, printed, complaints, seconds, cpu, others)


def busy_seconds() -> float | None:
    """Processor seconds that all programs took since the machine started, those of other guests included (steal)."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    return sum(map(int, fields[:3] + fields[5:8])) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


def cpu_name() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def machine() -> list[str]:
    """Lines that say on what the figures were taken."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [f"{cores} cores, {cpu_name()}, {memory:.0f} GiB of memory, {platform.system()} {platform.machine()}"]
    gpus = subprocess.run(
        "nvidia-smi --query-gpu=name --format=csv,noheader", shell=True, capture_output=True, text=True
    )
    lines.append(f"GPU: {', '.join(gpus.stdout.split(chr(10))).strip(', ')}" if gpus.returncode == 0 else "no GPU")
    return lines


def versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no")
    return f"commit {git('rev-parse', '--short', 'HEAD') or 'unknown'}{' with changes' if dirty else ''}"


def section(outcome: Outcome) -> list[str]:
    """Lines of the page: heading, what stopped it if anything did, its tables, what it printed beside."""
    lines = [f"## {outcome.name}", "", outcome.title, ""]
    if outcome.lacking:
        return [*lines, f"Did not run: {outcome.lacking} is not installed.", ""]
    if outcome.failed:
        said = (outcome.complaints.strip() or f"exit code {outcome.code}").splitlines()[-1]
        lines += [f"**Failed**: {said}", ""]
    printed = outcome.printed.splitlines()
    tables, others = [], []
    for before, line in zip(["", *printed], printed, strict=False):
        if line.startswith("|"):
            tables += [line] if before.startswith("|") or not tables else ["", line]
        elif line.strip():
            others.append(line.rstrip())
    lines += [*tables, ""] if tables else []
    lines += ["```", *others, "```", ""] if others else []
    others = "" if outcome.others is None else f"; other programs took {outcome.others:.2f} cores meanwhile"
    spent = f"`python benchmarks/{outcome.name}.py`: {outcome.seconds:.0f} s, {outcome.cpu:.0f} s of CPU"
    return [*lines, spent + others, ""]


def page(outcomes: list[Outcome]) -> str:
    lines = ["# Results of the benchmarks", "", f"Written by `make bench` on {time.strftime('%Y-%m-%d', time.gmtime())}"
             f" ({commit()}); do not edit.", ""]  # fmt: skip
    lines += [f"- {line}" for line in [*machine(), ", ".join(versions())]]
    if any(outcome.others and outcome.others > BUSY for outcome in outcomes):
        lines += ["", "**Other programs ran beside**: ratios of CPU time hold better than those by the clock."]
    lines += ["", RATIOS, ""]
    for outcome in outcomes:
        lines += section(outcome)
    return "\n".join(lines).rstrip() + "\n"


def main(argv=None, folder: Path = ROOT / "benchmarks") -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks (default: all)")
    parser.add_argument("--out", type=Path, default=folder / "RESULTS.md", help="the page")
    parser.add_argument("--limit", type=float, default=3600, help="seconds that one may take")
    args = parser.parse_args(argv)
    known = benchmarks_in(folder)
    if unknown := [name for name in args.only or [] if name not in known]:
        raise InputError(f"--only {unknown[0]}: there is no such benchmark; choose of {', '.join(known)}")
    outcomes = []
    for name in args.only or known:
        print(f"== {name}", flush=True)
        outcomes.append(outcome := run_one(name, known[name], args.limit))
        print(outcome.printed.rstrip(), flush=True)
        if outcome.code:
            why = f"not run: {outcome.lacking} is not installed" if outcome.lacking else outcome.complaints.rstrip()
            print(why, file=sys.stderr, flush=True)
    atomic_write(args.out, page(outcomes))
    failed = [outcome.name for outcome in outcomes if outcome.failed]
    skipped = [outcome.name for outcome in outcomes if outcome.lacking]
    told = [f"{len(names)} {what}{' (' + ', '.join(names) + ')' if names else ''}"
            for what, names in (("failed", failed), ("not run", skipped))]  # fmt: skip
    print(f"{len(outcomes)} benchmarks, {', '.join(told)}: {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
