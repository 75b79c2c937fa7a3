"""Fine-tuning: what fits of one segmenter's weights into another with other bands or classes, matched by name."""

from collections import Counter

import torch

from common.errors import InputError
from common.models.late_fusion import LateEncoder
from common.models.segmenter import Segmenter

PHOTO = ("red", "green", "blue")  # what the first encoder of a late fusion sees
NAMED, DEPTH = 12, 5  # places that a list of the log spells out, and the parts of a tensor's name that make a place
ABSENT, SHAPE = "not in the checkpoint", "in another shape"
STRANGE, SURPLUS = "of other bands or classes", "of the checkpoint, without a place here"


def init_from(model: Segmenter, state: dict, *, bands, outputs, source_bands=None, source_outputs=None) -> str:
    """Take what fits of `state` (a segmenter's) into `model`; a text that names what was taken and what was not.

    bands, outputs   names of the model's channels and classes; source_…: those of the state, None if unknown.
    The kernels of a stem are matched by band: a band the source has not starts at zero, so that the model begins as
    the source did; a stem without a shared band stays as it was. The rows of the head are matched by class; new ones
    stay as they were. Unknown names: stem and head are taken only where the shapes are equal. Everything else is
    taken by name and shape. A late fusion takes the encoder of one without fusion as that of red, green and blue:
    training alone first, then together, as Li et al. 2025 do. Raises InputError where nothing of the encoder fits, or
    names and tensors disagree.
    """
    own, stems = model.state_dict(), model.stems()
    state, source_of = late_names(model, state, source_bands)
    names = {key: (1, [bands[i] for i in seen], source_of(key)) for key, seen in stems.items()}
    names["head"] = (0, outputs, source_outputs)
    taken, matched, left = {}, {}, {reason: [] for reason in (ABSENT, SHAPE, STRANGE, SURPLUS)}
    for key, value in own.items():
        part = key if key in stems else "head" if key.startswith("net.segmentation_head.") else ""
        filled, why = None, SHAPE
        if key not in state:
            why = ABSENT
        elif part and names[part][2] is not None:
            filled = by_name(key, value, state[key], *names[part], blank=key in stems)
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


def late_names(model: Segmenter, state: dict, source_bands):
    """(state with the names of a late fusion where `model` is one; a stem's name -> the bands its source has)."""
    late, photo = isinstance(model.net.encoder, LateEncoder), "net.encoder.photo."
    was_late = any(key.startswith(photo) for key in state)
    if late and not was_late:
        state = {key.replace("net.encoder.", photo, 1): value for key, value in state.items()}
    if source_bands is None or not was_late:
        return state, lambda key: source_bands
    others = [band for band in source_bands if band not in PHOTO]
    return state, lambda key: list(PHOTO) if key.startswith(photo) else others if ".rest." in key else source_bands


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
    for part, (names, source_names) in matched.items():
        new = ("new" if part == "head" else "at zero") + ", not in the checkpoint"
        sets = (
            ("by name", [name for name in names if name in source_names]),
            (new, [name for name in names if name not in source_names]),
            ("of the checkpoint not taken", [name for name in source_names if name not in names]),
        )
        place = "head" if part == "head" else "stem of the others" if ".rest." in part else "stem"
        parts.append(f"{place}: " + ", ".join(f"{' '.join(some)} {what}" for what, some in sets if some))
    for what, keys in left.items():
        if keys:
            places = Counter(".".join(key.split(".")[:-1][:DEPTH]) for key in keys)
            listed = [f"{place} ({n})" for place, n in places.items()]
            more = f" and {len(listed) - NAMED} more places" if len(listed) > NAMED else ""
            parts.append(f"{what}: {', '.join(listed[:NAMED])}{more}")
    return "; ".join(parts)
