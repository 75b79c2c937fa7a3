"""`train.py --check`: everything a run would do, once, before it is begun."""

import torch
import yaml

from common.engine.batch_size import AUTO, measure_batch_size
from common.engine.device import autocast, to_device
from common.engine.lone_rows import lone_row
from common.engine.rows import make_loader


def check_recipe(task, settings: dict, train_rows, machine, folder) -> float:
    """Print all settings, draw a batch as the model will see it, take one step; returns the loss.

    The settings come first, so that they stand above whatever fails; a batch size that is measured, below what was
    loaded. Nothing is written but the contact sheet `<folder>/check.jpg`.
    """
    print(yaml.safe_dump({key: settings[key] for key in sorted(settings)}, sort_keys=True).rstrip())
    spec = task.make_spec(train_rows, settings)
    model = task.build_model(spec)
    print(task.load_weights(model, spec, settings))
    dataset, collate = task.open_training(train_rows, spec, settings), task.collate
    if settings["batch_size"] == AUTO:
        size = measure_batch_size(task, model, dataset, None, collate, spec, settings, machine)
        settings = settings | {"batch_size": size}
        print(f"batch_size: {size}")
    loader = make_loader(dataset, settings, machine, shuffle=True, collate=collate, init_worker=task.init_worker)
    batch = next(iter(loader))
    if "sheet" in task.draw:
        path = task.draw["sheet"](batch, spec, folder / "check.jpg")
        print(f"contact sheet of {len(batch['id'])} augmented inputs with their targets: {path}")
    if getattr(model, "closed_form", False):
        return 0.0
    parameters, _ = task.plan(model, settings)
    model.to(machine.device).train()
    batch = to_device(batch, machine.device) | {"epoch": 0}
    with autocast(machine.device, machine.amp), lone_row(model, len(batch["id"]), seldom=False):
        outputs = model(batch["image"])
    parts = task.build_loss(spec, settings)(outputs, batch)
    parts["loss"].backward()
    torch.optim.AdamW(parameters).step()
    gradient = sum(float(p.grad.norm()) ** 2 for g in parameters for p in g["params"] if p.grad is not None) ** 0.5
    shown = ", ".join(f"{key} {value.item():.4f}" for key, value in parts.items())
    print(f"one step: {shown}; gradient norm {gradient:.3f}; nothing was saved")
    return parts["loss"].item()
