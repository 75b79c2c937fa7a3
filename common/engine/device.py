"""Where tensors live and how many processes share the work: device, AMP, threads, DDP."""

import contextlib
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from common.errors import InputError

AMP_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DEVICE_TYPES = ("auto", "cuda", "mps", "cpu")


def pick_device(device_type: str = "auto") -> torch.device:
    """The named device, or the best there is; the local rank chooses among several GPUs."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device_type == "auto":
        device_type = next(name for name, here in available.items() if here)
    if not available[device_type]:
        raise InputError(f"--device-type {device_type}: not available here; use --device-type auto or cpu")
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        return device
    return torch.device(device_type)


def pick_amp(amp: str, device: torch.device) -> torch.dtype | None:
    """dtype of autocast, None for fp32. auto: bf16 where the card has it in hardware, else fp16, on CUDA only."""
    if amp == "auto":
        if device.type != "cuda":
            return None
        # a T4 emulates bf16 and says it supports it; compute capability 8 has it in hardware
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if amp == "off":
        return None
    if amp == "fp16" and device.type == "cpu":
        raise InputError("--amp fp16 needs a GPU (gradients are scaled there); on a CPU use --amp bf16 or off")
    return AMP_TYPES[amp]


@dataclass(frozen=True)
class Machine:
    """Where this process computes, and which of how many it is."""

    device: torch.device
    amp: torch.dtype | None = None
    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0


def start_machine(device_type: str, amp: str) -> Machine:
    """The machine that the options ask for; joins the other processes where torchrun started several."""
    device = pick_device(device_type)
    return Machine(device, pick_amp(amp, device), *start_processes(device))


def autocast(device: torch.device, dtype: torch.dtype | None):
    return torch.autocast(device.type, dtype=dtype) if dtype is not None else contextlib.nullcontext()


def set_threads() -> None:
    """Share the cores once: OpenCV one thread (loader workers multiply it), torch the cores of this process.

    OMP_NUM_THREADS has the say where the user set it; torchrun sets it to 1 unasked, which does not count.
    """
    import cv2

    cv2.setNumThreads(1)
    if os.environ.get("OMP_NUM_THREADS", "").isdigit() and "LOCAL_WORLD_SIZE" not in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def seed_everything(seed: int, deterministic: bool = False) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def rng_state() -> dict:
    """RNG states as plain types and tensors (a checkpoint is loaded with weights_only=True)."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def start_processes(device: torch.device) -> tuple[int, int]:
    """(rank, world size); joins the process group when torchrun started us."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def stop_processes() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def wrap_ddp(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The model under DDP. Batch norm is synchronised on CUDA; on a CPU each process keeps its own, and says so."""
    has_norm = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())
    if has_norm and device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif has_norm and dist.get_rank() == 0:
        print("batch norm: statistics per process (synchronised on CUDA only)")
    ids = [device.index] if device.type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)


def gather_predictions(part: dict, ids: list[str]) -> dict:
    """The predictions of all processes (engine.predict's answer) in the order of these ids, on every process.

    A row that a process was given as padding is there once.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return part
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    place = {name: position for position, name in enumerate(sum((one["id"] for one in parts), []))}
    order = [place[name] for name in ids]
    joined = {}
    for key, value in part.items():
        pieces = [one[key] for one in parts]
        if isinstance(value, np.ndarray):
            joined[key] = np.concatenate(pieces, axis=1)[:, order]
        else:
            joined[key] = [sum(pieces, [])[position] for position in order]
    return joined


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def to_device(batch: dict, device: torch.device) -> dict:
    """Tensors of a batch (and of the dicts inside it) on the device; the rest as it is."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            value = value.to(device, non_blocking=True)
        elif isinstance(value, dict):
            value = to_device(value, device)
        moved[key] = value
    return moved
