"""Checkpoints that describe themselves: plain types and tensors, written atomically, loaded safely.

A frozen backbone is the same in every fold, so it is stored once beside the folds of its run and named by its hash;
such a checkpoint holds the rest and says where the backbone lies.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.errors import InputError, is_lost_worker
from common.files import atomic_write
from common.text_files import content_of
from common.torch_files import Metered, read_tensors, read_torch, tensors_in

FORMAT = 1
SLACK = 500_000_000  # numbers a model may make on its way beside its weights (VGG: 120 million)
WEIGHTS = ("ema", "last", "best")  # --use: the last epoch's average, the last epoch's own, the best epoch's
# of a checkpoint what training alone needs, and the state dicts, of which a slim one keeps one
TRAINING = {"ema", "optimizer", "scaler", "plateau", "history", "best_score", "since_best", "next_epoch",
            "global_step", "guard", "rng"}  # fmt: skip


def plain(value):
    """The value in plain types and tensors. TypeError for anything a weights_only load would refuse."""
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value.detach() if isinstance(value, torch.Tensor) else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key if isinstance(key, (str, int)) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"not a plain type for a checkpoint: {type(value)}")


def save_checkpoint(path: Path, content: dict) -> None:
    """Write whole or not at all. InputError for a full disk (which torch's zip writer reports as a RuntimeError)."""
    content = plain({"format": FORMAT, **content})
    try:
        atomic_write(path, lambda temporary: torch.save(content, temporary))
    except RuntimeError as error:
        if is_lost_worker(error):
            raise
        raise InputError(f"{path}: cannot be written ({str(error).splitlines()[0][:80]}); free disk space") from error


def load_checkpoint(path: Path, device="cpu") -> dict:
    """The content of a checkpoint of ours. InputError for a file that is absent, foreign, broken or malicious."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; train the fold first or name another run")
    content = read_torch(path, remedy="only load our own files, and copy it again", device=device)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("spec"), dict):
        raise InputError(f"{path}: not a checkpoint of this format ({FORMAT}); it was not written by this train.py")
    return content


def checkpoint_file(fold_folder: Path, use: str) -> Path:
    """best.pt for `best`, last.pt otherwise (it holds the average beside the weights)."""
    return fold_folder / ("best.pt" if use == "best" else "last.pt")


def initial_checkpoint(path: Path) -> Path:
    """The checkpoint that --init names: a file, or the last.pt of a fold or of a run's first fold, else InputError."""
    if not path.is_dir():
        return path
    found = sorted(path.glob("last.pt")) or sorted(path.glob("fold*/last.pt"))
    if not found:
        raise InputError(f"--init {path}: no last.pt there; name a checkpoint, a fold or a run")
    return found[0]


def slim_checkpoint(path: Path, target: Path, use: str) -> Path:
    """Write to `target` what inference needs of the checkpoint at `path`: its header and the weights of `use` alone,
    which content["use"] names. A frozen part that lies beside the folds is not copied. InputError: not in this file."""
    content = load_checkpoint(path)
    check_use(path, content, use)
    if use != "best" and "use" not in content and "next_epoch" not in content:
        raise InputError(f"{path}: holds the best epoch alone, not --use {use}; give last.pt")
    kept = {key: value for key, value in content.items() if key not in TRAINING}
    save_checkpoint(target, {**kept, "state_dict": weights_of(content, use), "use": use})
    return target


def check_use(path: Path, content: dict, use: str) -> None:
    """InputError where a slim checkpoint keeps other weights than those asked for."""
    kept = content.get("use", use)
    if kept != use:
        raise InputError(f"{path}: keeps the weights of --use {kept} alone, not of --use {use}; give --use {kept}, or "
                         "the run it was made from")  # fmt: skip


def load_training(path: Path) -> dict:
    """The content of a checkpoint that training goes on from. InputError for one that is slim: it has no optimizer."""
    content = load_checkpoint(path)
    if "optimizer" not in content:
        raise InputError(f"{path}: holds weights for inference alone, from which no training goes on; copy the "
                         "run's own last.pt, or --force to start over")  # fmt: skip
    return content


def weights_of(content: dict, use: str) -> dict:
    """The state dict to use: the average where it was kept and asked for."""
    return content["ema"] if use == "ema" and content.get("ema") else content["state_dict"]


def save_external(run_folder: Path, state: dict, digest: str) -> str:
    """Store a frozen part once per run, named by its hash; returns the file's name."""
    name = f"backbone-{digest[:16]}.safetensors"
    target = run_folder / name
    if not target.exists():
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        try:
            atomic_write(target, lambda temporary: save_file(tensors, temporary))
        except SafetensorError as error:
            raise InputError(f"{target}: cannot be written ({str(error)[:100]}); free disk space") from error
    return name


def load_external(checkpoint: Path, name: str) -> dict:
    """The frozen part of a checkpoint: beside the fold folders, or beside the checkpoint itself."""
    if not isinstance(name, str) or Path(name).name != name:
        raise InputError(f"{checkpoint}: names its frozen backbone by a path, {str(name)[:80]!r}; copy it again")
    for folder in (checkpoint.parent.parent, checkpoint.parent):
        if (folder / name).is_file():
            return read_tensors(folder / name, remedy="copy it again from the run folder")
    raise InputError(
        f"{checkpoint}: its frozen backbone {name} is missing; copy it from the run folder beside the folds"
    )


def whole_state(path: Path, content: dict, use: str) -> dict:
    """The state dict to use with the frozen part that is stored beside the folds."""
    state, external = dict(weights_of(content, use)), content.get("external")
    if external:
        frozen = load_external(Path(path), external["file"])
        state.update({external["prefix"] + key: value for key, value in frozen.items()})
    return state


def build(path: Path, tasks: dict, *, use: str = "ema", device="cpu"):
    """(model, content): the one way any script gets a trained model. Never downloads.

    tasks: name -> task with `build_model(spec)`. The model gets `backbone_key`, the hash of a frozen backbone or None.
    InputError: another task, weights that do not fit, or a slim checkpoint that keeps other weights than `use`.
    """
    path = Path(path)
    content = load_checkpoint(path)
    check_use(path, content, use)
    name = content["spec"].get("task")
    if not isinstance(name, str) or name not in tasks:
        raise InputError(f"{path}: made for task {name!r}, which is not known here ({', '.join(tasks)})")
    with content_of(path, "copy it again from its run"):
        model = described_model(path, content, use, tasks[name].build_model)
        model.backbone_key = content["external"]["sha256"] if content.get("external") else None
    return model.to(device).eval(), content


def described_model(path: Path, content: dict, use: str, build_model):
    """The model of a checkpoint's spec with its weights. InputError where they do not fit it, or where it would be
    much larger than they are, before it takes that memory."""
    state = whole_state(path, content, use)
    held = sum(part.numel() for part in tensors_in(state))  # a fitted head keeps tables of them
    message = f"{path}: its spec describes a model far larger than its {held:,} weights; copy it again"
    with Metered(2 * held + SLACK, message):
        model = build_model(content["spec"])
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: weights do not fit the model its spec describes ({detail})") from error
    return model
