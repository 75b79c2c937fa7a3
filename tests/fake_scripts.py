"""Stand-ins for the scripts of a kernel, which note how they were called, and for nvidia-smi."""

import json
import os
import stat
from pathlib import Path

from kernels import calls, machine, runtime

HEAD = """
import json, os, sys, time
from pathlib import Path

name, words = Path(sys.argv[0]).name, sys.argv[1:]


def option(key, default=None):
    return words[words.index(key) + 1] if key in words else default


def spend(seconds):  # on the clock of the test
    clock = Path(os.environ["FAKE_CLOCK"])
    part = clock.with_name(f"{clock.name}.{os.getpid()}")
    part.write_text(str(float(clock.read_text()) + seconds))
    part.replace(clock)


rank = int(os.environ.get("RANK", 0))
keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
        "LANDFOLD_COMMIT")
noted = {"script": name, "words": words, "cwd": os.getcwd(), "began": time.monotonic(), "pid": os.getpid()}
noted |= {key: os.environ[key] for key in keys if key in os.environ}
with open("noted.jsonl", "a") as file:
    file.write(json.dumps(noted) + "\\n")
out = Path(option("--out", "out"))
print(name, "speaks, process", rank, flush=True)
"""
HANDS_IN = """
if rank == 0:
    out.mkdir(parents=True, exist_ok=True)
    (out / "submission.csv").write_text(f"by {name} {out}")
"""
CHECKS = """
folder = Path(words[1])
print("checked", *words)
sys.exit(2 if "wrong" in (folder / "submission.csv").read_text() else 0)
"""


class FakeKernel:
    """A payload of fake scripts with mounts and a working folder, and what they noted."""

    def __init__(self, home: Path):
        self.payload, self.inputs, self.working = home / "payload", home / "input", home / "working"
        for folder in (self.payload / "kernels", self.inputs, self.working):
            folder.mkdir(parents=True)
        self.clock = home / "clock"
        self.clock.write_text("0")
        for name in ("infer.py", "ensemble.py"):
            self.script(name, HANDS_IN)
        self.script("train.py", "")
        self.script("kernels/check_hand_in.py", CHECKS)

    def script(self, name: str, body: str) -> None:
        (self.payload / name).write_text(HEAD + body)

    def now(self) -> float:
        return float(self.clock.read_text())

    def run(self, *calls: str, **changes) -> int:
        """Exit code of a kernel that makes these calls."""
        kernel = {"name": "fake-infer", "task": "biomass", "version": "1.2", "commit": "abc123", "gpu": True,
                  "calls": [call.split() for call in calls], "time_budget": None, "hand_in": "submission.csv",
                  "packages": [], "processes": None} | changes  # fmt: skip
        return runtime.main(kernel, inputs=self.inputs, working=self.working)

    def train(self, *calls: str, **changes) -> int:
        return self.run(*calls, hand_in=None, **changes)

    def noted(self, script: str | None = None) -> list[dict]:
        """What was called, in order (without the check of what is handed in)."""
        path = self.working / "noted.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [one for one in lines if one["script"] == script or (script is None and "check" not in one["script"])]

    def make_run(self, mount: str, name: str, folds: str = "01") -> Path:
        """A run folder in a mount; returns it."""
        run = self.inputs / mount / name
        for fold in folds:
            (run / f"fold{fold}").mkdir(parents=True)
            (run / f"fold{fold}" / "args.yaml").write_text("seed: 42\n")
        return run


def fake_kernel(home: Path, monkeypatch) -> FakeKernel:
    """A kernel of fake scripts on a machine without GPU, whose clock stands still unless a script spends time."""
    fake = FakeKernel(home)
    monkeypatch.setattr(runtime, "PAYLOAD", fake.payload)
    monkeypatch.setattr(calls, "now", fake.now)
    monkeypatch.setattr(calls, "GRACE", 2.0)
    monkeypatch.setattr(machine, "STOP", 0)  # whatever the disk of this machine has left
    monkeypatch.setattr(machine, "WARN", 0)
    monkeypatch.setenv("FAKE_CLOCK", str(fake.clock))
    monkeypatch.delenv("LANDFOLD_PROCESSES", raising=False)
    fake_gpus(home / "bin", monkeypatch)
    return fake


def fake_gpus(folder: Path, monkeypatch, *names: str) -> None:
    """Put an nvidia-smi that lists these cards before all else on the path."""
    folder.mkdir(exist_ok=True)
    script = folder / "nvidia-smi"
    script.write_text("#!/bin/sh\n" + "".join(f'echo "{name}, 15360 MiB"\n' for name in names))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
