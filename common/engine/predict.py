"""The one forward path: validation inside training and inference alike."""

from itertools import groupby

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


def passes(models: list, views: list[str]) -> int:
    """Forward passes that a batch costs: models that share a frozen backbone cost as much as one of them."""
    on_image = len({split_view(view)[0] for view in views})
    shared = [getattr(models[group[0]], "backbone_key", None) is not None for group in group_shared(models)]
    return sum(on_image if one else len(views) for one in shared)


def filled_up(seen: dict, count: int) -> dict:
    """{key: (M,B,...)} of fewer models as one of `count`: the others get their mean, which so stays what it is."""
    return {
        key: torch.cat([value, value.mean(dim=0, keepdim=True).expand(count - len(value), *value.shape[1:])])
        if len(value) < count else value
        for key, value in seen.items()
    }  # fmt: skip


def nothing_seen(like: dict, image: torch.Tensor) -> dict:
    """{key: (M,B,...)} of zeros for a batch that is not predicted; like: (M,...) of every key, from one that was."""
    zeros = {}
    for key, (count, *shape) in like.items():
        shape = [*shape[:-2], *image.shape[-2:]] if len(shape) == 3 else shape  # a map is as large as its image
        zeros[key] = torch.zeros(count, len(image), *shape)
    return zeros


@torch.inference_mode()
def predict(
    models, loader, *, views: list[str], device, to_pred, amp=None, progress: str = "", keep=None, steps=None
) -> dict:
    """Predictions of every model over a loader, averaged over the views in the units that `to_pred` returns.

    to_pred(model, outputs) -> {"pred": (B,...) tensor, ...}; every key is averaged over views by itself.
    keep(batch, {key: (M,B,...) tensor}) -> what is to be kept of a batch, in the same form: maps of a whole data set
    need not fit in memory.
    steps: (batch, views, number of models) in place of the loader's batches, where not every batch gets everything;
    rows that no model saw are bad then, and "left": [bool] tells them from those that could not be read.
    Returns {"id": [str], "bad": [bool], key: float32 (M, n, ...)} for M models in the order given.
    """
    was_training = [model.training for model in models]
    for model in models:
        model.eval().to(device)
    ids, bad, left, parts, like = [], [], [], {}, {}
    planned, steps = steps is not None, steps or ((batch, views, len(models)) for batch in loader)
    total = len(loader) if hasattr(loader, "__len__") else None
    bar = tqdm(steps, total=total, desc=progress, disable=None if progress else True, leave=False)
    most = CPU_PIXELS if torch.device(device).type == "cpu" else None
    alike = ((part, given, count) for batch, given, count in bar for part in of_one_size(batch, most))
    for batch, given, count in alike:
        if count:
            image = to_device({"image": batch["image"]}, device)["image"]
            some = models[:count]
            seen = filled_up(mean_over_views(some, group_shared(some), image, given, to_pred, device, amp), len(models))
            like = {key: (len(value), *value.shape[2:]) for key, value in seen.items()}
        else:
            seen = nothing_seen(like, batch["image"])
        for key, value in (keep(batch, seen) if keep else seen).items():
            parts.setdefault(key, []).append(value.cpu())
        ids += list(batch["id"])
        bad += [bool(flag) or not count for flag in batch.get("bad", [False] * len(batch["id"]))]
        left += [not count] * len(batch["id"])
    for model, training in zip(models, was_training, strict=True):
        model.train(training)
    kept = {key: torch.cat(values, dim=1).numpy() for key, values in parts.items()}
    return {"id": ids, "bad": bad, **({"left": left} if planned else {}), **kept}
