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
# a notebook's cells, one after the other in one namespace; as with Jupyter, only what goes through sys.stdout and
# sys.stderr is seen, and these are no files
NOTEBOOK = """
import io, json, os, sys
class Shown(io.TextIOBase):
    def write(self, text):
        return os.write(SEEN, text.encode()) and len(text)
SEEN = os.dup(1)
for number in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
sys.stdout = sys.stderr = Shown()
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
    python = Path(python).absolute()
    given = {"PATH": f"{python.parent}:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp/home",
             "KAGGLE_KERNEL_RUN_TYPE": "Batch", **(variables or {})}  # fmt: skip
    inner = f"/kaggle/src/{script.name}"
    run = [python, "-c", NOTEBOOK, inner] if script.suffix == ".ipynb" else [python, inner, *map(str, words)]
    run = ["env", "-i", *(f"{key}={value}" for key, value in given.items()), *map(str, run)]
    root = home / "root"
    enter = shlex.join(["chroot", str(root), "bash", "-c", f"cd {cwd} && exec {shlex.join(run)}"])
    lines = [*build_root(root, home, Path(script).resolve(), mounts, python.parents[1]), enter, "exit"]
    with open(home / "said.txt", "wb") as said:
        return subprocess.Popen([*ISOLATED, "\n".join(lines)], stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def build_root(root: Path, home: Path, script: Path, mounts: dict[str, Path], environment: Path) -> list[str]:
    """Shell commands that make the kernel's root: the machine's folders and the mounts read-only, two of its own."""
    lines = ["ip link set lo up", mount(root, "-t", "tmpfs", "tmpfs")]
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            lines.append(shlex.join(["ln", "-s", str(entry.readlink()), str(root / entry.name)]))
        elif entry.is_dir() and entry.name not in OWN:
            lines += show(entry, root / entry.name)
    lines += [mount(root / name, "--rbind", f"/{name}") for name in ("dev", "sys")]
    lines += [mount(root / "proc", "-t", "proc", "proc"), mount(root / "tmp", "--bind", str(home / "tmp"))]
    lines.append(mount(inside(root, ROOT), "-t", "tmpfs", "tmpfs"))
    python = (environment / "bin" / "python").resolve().parents[1]  # what a virtual environment stands on
    for needed in {environment, python}:
        lines += show(needed, inside(root, needed)) if hidden(needed) else []
    lines += [mount(root / "kaggle/working", "--bind", str(home / "working")),
              shlex.join(["mkdir", "-p", str(root / "kaggle/input"), str(root / "kaggle/src")]),
              shlex.join(["cp", str(script), str(root / "kaggle/src")])]  # fmt: skip
    for where, folder in mounts.items():
        lines += show(folder.resolve(), root / "kaggle/input" / where)
    return [*lines, *(mount(folder, "-o", "remount,ro") for folder in (inside(root, ROOT), root))]


def inside(root: Path, folder: Path) -> Path:
    """Where a folder of the machine lies in the kernel's root."""
    return root / folder.relative_to("/")


def hidden(folder: Path) -> bool:
    """Whether a folder lies where the kernel sees nothing of the machine's."""
    return folder.is_relative_to("/tmp") or folder.is_relative_to(ROOT)


def mount(target: Path, *words: str) -> str:
    """Commands that mount something on a folder, which is made where it is missing."""
    return f"mkdir -p {shlex.quote(str(target))}\n{shlex.join(['mount', *words, str(target)])}"


def show(source: Path, target: Path) -> list[str]:
    """Commands that show a folder in another place, read-only."""
    return [mount(target, "--bind", str(source)), mount(target, "-o", "remount,ro,bind")]


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
