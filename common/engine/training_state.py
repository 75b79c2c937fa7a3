"""All that a training goes on from: what is taken of a trainer, and put back into it."""

import io

import torch

from common.engine.checkpoint import plain
from common.engine.device import rng_state, set_rng_state
from common.errors import InputError


def own_state(state: dict, external: dict | None) -> dict:
    """A state dict without the part that is stored once for all folds."""
    return {k: v for k, v in state.items() if not (external and k.startswith(external["prefix"]))}


def epoch_content(trainer, model: torch.nn.Module, *, copied: bool = False) -> dict:
    """What a checkpoint holds of the epoch that is over, with the weights of `model`: as they are now where they are
    copied, into main memory, since the next step changes these very tensors."""
    state = own_state(model.state_dict(), trainer.header.get("external"))
    if copied:
        state = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
    said = {"epoch": trainer.next_epoch - 1, "score": trainer.history[-1]["score"], "state_dict": state}
    return {**trainer.header, **said}


def resume_state(trainer) -> dict:
    """What a checkpoint holds for training alone, beside the weights."""
    external = trainer.header.get("external")
    return {
        "ema": own_state(trainer.ema.module.state_dict(), external) if trainer.ema else None,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "plateau": trainer.plateau.state_dict() if trainer.plateau else None,
        "history": trainer.history,
        "best_score": trainer.best,
        "since_best": trainer.since_best,
        "next_epoch": trainer.next_epoch,
        "global_step": trainer.global_step,
        "guard": trainer.guard.state_dict(),
        "rng": rng_state(),
    }


def restore(trainer, content: dict) -> None:
    """Make the trainer what it was when the checkpoint's content was taken."""
    external = trainer.header.get("external")
    load_own(trainer.model, content["state_dict"], external)
    if trainer.ema:
        load_own(trainer.ema.module, content["ema"], external)
    trainer.optimizer.load_state_dict(content["optimizer"])
    trainer.scaler.load_state_dict(content["scaler"])
    if trainer.plateau:
        trainer.plateau.load_state_dict(content["plateau"])
    trainer.history, trainer.best = content["history"], content["best_score"]
    trainer.since_best, trainer.next_epoch = content["since_best"], content["next_epoch"]
    trainer.global_step = content["global_step"]
    trainer.guard.load_state_dict(content.get("guard") or {})
    set_rng_state(content["rng"])


def load_own(model: torch.nn.Module, state: dict, external: dict | None) -> None:
    """Load a state dict whose external part (a frozen backbone) is already in the model."""
    result = model.load_state_dict(state, strict=False)
    missing = [key for key in result.missing_keys if not (external and key.startswith(external["prefix"]))]
    if missing or result.unexpected_keys:
        raise InputError(f"last.pt does not fit the model: {(missing + result.unexpected_keys)[:3]}; use --force")


def stored(trainer) -> bytes:
    """The whole state in main memory, for a training that has no checkpoint yet."""
    weights = own_state(trainer.model.state_dict(), trainer.header.get("external"))
    torch.save(plain({"state_dict": weights, **resume_state(trainer)}), memory := io.BytesIO())
    return memory.getvalue()


def unstored(content: bytes) -> dict:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
