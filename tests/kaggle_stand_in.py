"""A stand-in for Kaggle: a script runs as a kernel does, without network, in a root of its own with read-only mounts.

It needs Linux, root and `unshare`; `why_not()` says what is missing. Nothing of it stays on the machine: /kaggle is a
folder of a root that only the kernel's processes see, and all of them end with the one that was started.
"""

import functools
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = ("dev", "kaggle", "proc", "sys", "tmp")  # folders of / that a kernel does not share with the machine as they are
# where Kaggle shows what is attached, below /kaggle/input; two of the three for a competition, all for a data set
LAYOUTS = {
    "flat": {"competition": "{slug}", "data set": "{slug}", "kernel": "{slug}"},
    "typed": {"competition": "competitions/{slug}", "data set": "datasets/{owner}/{slug}", "kernel": "{slug}"},
    "models": {"competition": "competitions/{slug}", "data set": "models/{owner}/{slug}/pytorch/default/1",
               "kernel": "{slug}"},
}  # fmt: skip
ISOLATED = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec"]
# a notebook's cells, one after the other in one namespace, as Kaggle runs them; an error of a cell is the kernel's
NOTEBOOK = """
import json, sys
book, here = json.load(open(sys.argv[1])), {"__name__": "__main__"}
for k, cell in enumerate(book["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {k}", "exec"), here)
"""


@dataclass(frozen=True)
class Ended:
    code: int
    said: str  # stdout and stderr together
    working: Path  # what was /kaggle/working

    @property
    def last(self) -> str:
        """The last line that was said."""
        return self.said.strip().splitlines()[-1]


@functools.cache
def why_not() -> str | None:
    """Why no kernel can be run here, or None where it can."""
    if sys.platform != "linux" or not shutil.which("unshare") or not shutil.which("ip"):
        return "the Kaggle stand-in needs Linux with unshare and ip"
    done = subprocess.run([*ISOLATED, "ip link set lo up"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces here (root is needed): {done.stderr.strip()}"


def place(layout: str, kind: str, slug: str, owner: str = "somebody") -> str:
    """Where below /kaggle/input a competition, data set or kernel's output is shown."""
    return LAYOUTS[layout][kind].format(slug=slug, owner=owner)


def start(script: Path, home: Path, mounts: dict[str, Path], *, python=sys.executable, variables=None, words=(),
          cwd="/kaggle/working") -> subprocess.Popen:  # fmt: skip
    """The running kernel: Popen whose kill() ends all its processes at once; what it says goes to home/said.txt.

    home: a folder of its own with (made here) working/, which is /kaggle/working, and tmp/, which is /tmp. mounts: path
    below /kaggle/input -> folder. python: its environment is the only one that the kernel sees; the repository is
    hidden. variables: of the environment, beside those that Kaggle sets; words: argv of the script.
    """
    for name in ("working", "tmp/home", "root"):
        (home / name).mkdir(parents=True, exist_ok=True)
    bin_folder = Path(python).absolute().parent
    given = {"PATH": f"{bin_folder}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp/home",
             "KAGGLE_KERNEL_RUN_TYPE": "Batch", **(variables or {})}  # fmt: skip
    inner = f"/kaggle/src/{script.name}"
    run = [python, "-c", NOTEBOOK, inner] if script.suffix == ".ipynb" else [python, inner, *map(str, words)]
    run = ["env", "-i", *(f"{key}={value}" for key, value in given.items()), *map(str, run)]
    root = home / "root"
    enter = shlex.join(["chroot", str(root), "bash", "-c", f"cd {cwd} && exec {shlex.join(run)}"])
    lines = [*build_root(root, home, Path(script).resolve(), mounts, bin_folder.parent), enter, "exit"]
    with open(home / "said.txt", "wb") as said:
        return subprocess.Popen([*ISOLATED, "\n".join(lines)], stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def build_root(root: Path, home: Path, script: Path, mounts: dict[str, Path], environment: Path) -> list[str]:
    """Shell commands that make the kernel's root: the machine's folders and the mounts read-only, two of its own."""
    lines = ["ip link set lo up", shlex.join(["mount", "-t", "tmpfs", "tmpfs", str(root)])]
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            lines.append(shlex.join(["ln", "-s", str(entry.readlink()), str(root / entry.name)]))
        elif entry.is_dir() and entry.name not in OWN:
            lines += bind(entry, root / entry.name)
    for name in ("dev", "sys"):
        lines += [f"mkdir {root / name}", f"mount --rbind /{name} {root / name}"]
    lines += [f"mkdir {root / 'proc'}", f"mount -t proc proc {root / 'proc'}"]
    lines += [*bind(home / "tmp", root / "tmp", writable=True)]
    lines.append(shlex.join(["mount", "-t", "tmpfs", "tmpfs", f"{root}{ROOT}"]))
    python = (environment / "bin" / "python").resolve().parents[1]  # what a virtual environment stands on
    for needed in {environment, python}:
        lines += bind(needed, Path(f"{root}{needed}")) if hidden(needed) else []
    lines += [*bind(home / "working", root / "kaggle/working", writable=True), f"mkdir -p {root / 'kaggle/input'}"]
    lines += [f"mkdir -p {root / 'kaggle/src'}", shlex.join(["cp", str(script), f"{root}/kaggle/src/"])]
    for where, folder in mounts.items():
        lines += bind(folder.resolve(), root / "kaggle/input" / where)
    return [*lines, shlex.join(["mount", "-o", "remount,ro", f"{root}{ROOT}"]), f"mount -o remount,ro {root}"]


def hidden(folder: Path) -> bool:
    """Whether a folder lies where the kernel sees nothing of the machine's."""
    return folder.is_relative_to("/tmp") or folder.is_relative_to(ROOT)


def bind(source: Path, target: Path, *, writable=False) -> list[str]:
    """Commands that show a folder in another place."""
    lines = [["mkdir", "-p", str(target)], ["mount", "--bind", str(source), str(target)]]
    lines += [] if writable else [["mount", "-o", "remount,ro,bind", str(target)]]
    return [shlex.join(line) for line in lines]


def wait(kernel: subprocess.Popen, home: Path, timeout: float = 600) -> Ended:
    """What became of a started kernel. AssertionError with its last lines where it takes longer (it is then ended)."""
    try:
        code = kernel.wait(timeout)
    except subprocess.TimeoutExpired:
        kernel.kill()
        kernel.wait()
        raise AssertionError(f"not done after {timeout:.0f} s:\n{(home / 'said.txt').read_text()[-3000:]}") from None
    return Ended(code, (home / "said.txt").read_text(), home / "working")


def run(script: Path, home: Path, mounts: dict[str, Path], *, timeout: float = 600, **more) -> Ended:
    """A kernel from its start to its end; arguments as of `start`."""
    return wait(start(script, home, mounts, **more), home, timeout)
