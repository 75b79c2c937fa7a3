"""Fine-tuning: what fits of one segmenter's weights into another with other bands or classes, matched by name."""

from collections import Counter

import torch

from common.errors import InputError
from common.models.segmenter import Segmenter

NAMED, DEPTH = 12, 5  # places that a list of the log spells out, and the parts of a tensor's name that make a place
ABSENT, SHAPE = "not in the checkpoint", "in another shape"
STRANGE, SURPLUS = "of other bands or classes", "of the checkpoint, without a place here"


def init_from(model: Segmenter, state: dict, *, bands, outputs, source_bands=None, source_outputs=None) -> str:
    """Take what fits of `state` (a segmenter's) into `model`; a text that names what was taken and what was not.

    bands, outputs   names of the model's channels and classes; source_…: those of the state, None if unknown.
    The kernels of a stem are matched by band: a band the source has not starts at zero, so that the model begins as
    the source did; a stem without a shared band stays as it was. The rows of the head are matched by class; new ones
    stay as they were. Unknown names: stem and head are taken only where the shapes are equal. Everything else is
    taken by name and shape. Raises InputError where nothing of the encoder fits, or names and tensors disagree.
    """
    own, stems = model.state_dict(), set(model.image_weights())
    names = {"stem": (1, bands, source_bands), "head": (0, outputs, source_outputs)}
    taken, matched, left = {}, {}, {reason: [] for reason in (ABSENT, SHAPE, STRANGE, SURPLUS)}
    for key, value in own.items():
        part = "stem" if key in stems else "head" if key.startswith("net.segmentation_head.") else ""
        filled, why = None, SHAPE
        if key not in state:
            why = ABSENT
        elif part and names[part][2] is not None:
            filled = by_name(key, value, state[key], *names[part], blank=part == "stem")
            why = SHAPE if set(names[part][1]) & set(names[part][2]) else STRANGE
            matched |= {part: names[part][1:]} if filled is not None else {}
        elif state[key].shape == value.shape:
            filled = state[key]
        if filled is None:
            left[why].append(key)
        else:
            taken[key] = filled
    if not any(key.startswith("net.encoder.") for key in taken):
        raise InputError(f"--init: nothing of it fits --encoder {model.encoder_name}; it was made with another encoder")
    model.load_state_dict({**own, **taken})
    left[SURPLUS] = [key for key in state if key not in own]
    return tell(own, taken, matched, left)


def by_name(key, own, source, axis: int, names, source_names, *, blank: bool) -> torch.Tensor | None:
    """`own` with the slices along `axis` that both sides name taken from `source`; None where nothing is shared.

    blank: slices that the source has not become zero instead of staying.
    """
    if source.shape[axis] != len(source_names):
        raise InputError(f"--init: {key} has {source.shape[axis]} slices for the names {', '.join(source_names)}")
    shared = [name for name in names if name in source_names]
    rest = [size for i, size in enumerate(own.shape) if i != axis]
    if not shared or rest != [size for i, size in enumerate(source.shape) if i != axis]:
        return None
    filled = torch.zeros_like(own) if blank else own.clone()
    for name in shared:
        taken = source.select(axis, list(source_names).index(name))
        filled.select(axis, list(names).index(name)).copy_(taken)
    return filled


def tell(own: dict, taken: dict, matched: dict, left: dict) -> str:
    """One line for the log: counts, bands and classes by name, then where tensors found no partner, and how many."""
    share = sum(v.numel() for v in taken.values()) / sum(v.numel() for v in own.values())
    parts = [f"took {len(taken)} of {len(own)} tensors ({share:.1%} of the weights)"]
    for part, new in (("stem", "at zero, not in the checkpoint"), ("head", "new, not in the checkpoint")):
        if part not in matched:
            continue
        names, source_names = matched[part]
        sets = (
            ("by name", [name for name in names if name in source_names]),
            (new, [name for name in names if name not in source_names]),
            ("of the checkpoint not taken", [name for name in source_names if name not in names]),
        )
        parts.append(f"{part}: " + ", ".join(f"{' '.join(some)} {what}" for what, some in sets if some))
    for what, keys in left.items():
        if keys:
            places = Counter(".".join(key.split(".")[:-1][:DEPTH]) for key in keys)
            listed = [f"{place} ({n})" for place, n in places.items()]
            more = f" and {len(listed) - NAMED} more places" if len(listed) > NAMED else ""
            parts.append(f"{what}: {', '.join(listed[:NAMED])}{more}")
    return "; ".join(parts)
