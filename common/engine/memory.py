"""Memory of the device and of this process: what is free, and the peak of a piece of work."""

import ctypes
import os
import subprocess
import threading
from pathlib import Path

import torch

EVERY = 0.002  # seconds between two looks at the memory where nothing keeps its peak
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take: of the GPU, or its share of the machine's memory and of its limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    share = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of this machine that train together
    if device.type == "mps" and hasattr(torch.mps, "recommended_max_memory"):
        return max(0, torch.mps.recommended_max_memory() - used_memory(device)) // share
    return min([machine_memory(), *cgroup_memory()]) // share


def machine_memory() -> int:
    """Bytes that the kernel could hand out without swapping; half of what is built in where it does not say."""
    table = PROC / "meminfo"
    if table.is_file():
        lines = dict(line.split(":", 1) for line in table.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def cgroup_memory() -> list[int]:
    """What each limit that a container or a job scheduler set leaves, caches that can be dropped counted as free."""
    found, groups = [], PROC / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        names = names if controllers else ("memory.max", "memory.current", "inactive_file")
        root = CGROUPS / "memory" if controllers else CGROUPS
        inside = root / path.strip("/")
        # inside a container the path may be the host's, and the container's own group is the root
        for folder in {root, inside, *(parent for parent in inside.parents if root in parent.parents)}:
            left = left_in(folder, *names)
            found += [] if left is None else [left]
    return found


def left_in(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    """Bytes left under a control group's limit; None where there is no group or no limit."""
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        caches = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - now + int(caches.get(droppable, 0)))


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds for itself: on the GPU, or of the machine's memory without files it has mapped."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    pages = PROC / "self" / "statm"
    if pages.is_file():
        _, resident, of_files = pages.read_text().split()[:3]
        return (int(resident) - int(of_files)) * os.sysconf("SC_PAGE_SIZE")
    words = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) * 1024


def release_memory(device: torch.device) -> None:
    """Give back what was freed but is still held by an allocator, so that the next peak is the work's own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim:
        trim(0)


class PeakMemory:
    """`with PeakMemory(device) as peak: …` -> peak.bytes, the most that this process held meanwhile."""

    def __init__(self, device: torch.device):
        self.device, self.bytes = device, 0
        self.done, self.thread = threading.Event(), threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while not self.done.wait(EVERY):
            self.bytes = max(self.bytes, used_memory(self.device))

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self.bytes = used_memory(self.device)
            self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_reserved(self.device)
            return
        self.done.set()
        self.thread.join()
        self.bytes = max(self.bytes, used_memory(self.device))
