"""The one forward path: validation inside training and inference alike."""

from itertools import chain, groupby

import torch
from tqdm import tqdm

from common.engine.device import autocast, to_device
from common.engine.tta import apply_view, invert_view, split_view

# A CPU spends half its time on memory where activations outgrow its caches: 60 tiles of 512x512 through a small U-Net
# took 6.4 s in batches of eight, 2.9 s one by one.
CPU_PIXELS = 512 * 512


def group_shared(models: list) -> list[list[int]]:
    """Indices of models that share a frozen backbone (the same `backbone_key`), group by group; others alone."""
    groups: dict = {}
    for index, model in enumerate(models):
        key = getattr(model, "backbone_key", None)
        groups.setdefault(key if key is not None else ("own", index), []).append(index)
    return list(groups.values())


def _outputs_of_group(models: list, image: torch.Tensor, views: list[str]):
    """Yields (position in the group, view, outputs) for models and views; one backbone pass per distinct image view."""
    if len(models) == 1 and getattr(models[0], "backbone_key", None) is None:
        for view in views:
            yield 0, view, models[0](apply_view(view, image))
        return
    features = {}
    for view in views:
        on_image, on_features = split_view(view)
        if on_image not in features:
            features[on_image] = models[0].embed(apply_view(on_image, image))
        seen = apply_view(on_features, features[on_image])
        for position, model in enumerate(models):
            yield position, view, model.heads(seen)


def upright(view: str, value: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """A prediction as it would be without the view: a map (B,K,H,W) is turned back, what has no place is as it is."""
    return invert_view(view, value, tuple(image.shape[-2:])) if value.ndim == 4 else value


def mean_over_views(models: list, groups: list, image: torch.Tensor, views: list[str], to_pred, device, amp) -> dict:
    """{key: (M, B, ...)} on the device: every model's predictions for a batch, mean over the views."""
    sums: dict = {}
    for group in groups:
        with autocast(device, amp):
            for position, view, outputs in _outputs_of_group([models[index] for index in group], image, views):
                for key, value in to_pred(models[group[position]], outputs).items():
                    value = upright(view, value.float(), image)
                    by_model = sums.setdefault(key, {})
                    index = group[position]
                    by_model[index] = by_model[index] + value if index in by_model else value
    return {key: torch.stack([by_model[i] for i in range(len(models))]) / len(views) for key, by_model in sums.items()}


def of_one_size(batch: dict, most: int | None = None):
    """The batch in parts of maps of one size and of at most `most` pixels, at least one map each, without the padding
    that made them alike.

    What is predicted of a tile then does not depend on its neighbours in a batch.
    """
    sizes = batch.get("size", [])
    if len(set(sizes)) < 2 and (most is None or sum(height * width for height, width in sizes) <= most):
        yield batch
        return
    for (height, width), run in groupby(range(len(sizes)), key=sizes.__getitem__):
        alike = list(run)
        step = len(alike) if most is None else max(1, most // (height * width))
        for first in range(0, len(alike), step):
            yield part_of(batch, alike[first : first + step], height, width)


def part_of(batch: dict, chosen: list[int], height: int, width: int) -> dict:
    """Some rows of a batch, their maps cut to a size."""
    part = dict(batch)
    for key, value in batch.items():
        if isinstance(value, torch.Tensor):
            value = value[chosen]
            part[key] = value[..., :height, :width] if value.ndim > 2 else value
        elif isinstance(value, list):
            part[key] = [value[index] for index in chosen]
    return part


@torch.inference_mode()
def predict(models, loader, *, views: list[str], device, to_pred, amp=None, progress: str = "", keep=None) -> dict:
    """Predictions of every model over a loader, averaged over the views in the units that `to_pred` returns.

    to_pred(model, outputs) -> {"pred": (B,...) tensor, ...}; every key is averaged over views by itself.
    keep(batch, {key: (M,B,...) tensor}) -> what is to be kept of a batch, in the same form: maps of a whole data set
    need not fit in memory.
    Returns {"id": [str], "bad": [bool], key: float32 (M, n, ...)} for M models in the order given.
    """
    was_training = [model.training for model in models]
    for model in models:
        model.eval().to(device)
    groups = group_shared(models)
    ids, bad, parts = [], [], {}
    bar = tqdm(loader, desc=progress, disable=None if progress else True, leave=False)
    most = CPU_PIXELS if torch.device(device).type == "cpu" else None
    for batch in chain.from_iterable(of_one_size(batch, most) for batch in bar):
        image = to_device({"image": batch["image"]}, device)["image"]
        seen = mean_over_views(models, groups, image, views, to_pred, device, amp)
        for key, value in (keep(batch, seen) if keep else seen).items():
            parts.setdefault(key, []).append(value.cpu())
        ids += list(batch["id"])
        bad += [bool(flag) for flag in batch.get("bad", [False] * len(batch["id"]))]
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    return {"id": ids, "bad": bad, **{key: torch.cat(values, dim=1).numpy() for key, values in parts.items()}}
