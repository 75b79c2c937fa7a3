"""--augment, which every family has: name[=probability[:strength]] items over the family's own table of names."""

import argparse
from collections.abc import Callable, Iterable, Mapping


def parse_augment(items: Iterable[str], defaults: Mapping[str, float]) -> tuple[dict, dict]:
    """Items as ({name: probability}, {name: strength}); defaults: {name: probability} where an item has none."""
    probabilities, strengths = {}, {}
    for item in items:
        name, _, rest = item.partition("=")
        probability, _, strength = rest.partition(":")
        probabilities[name] = float(probability) if probability else defaults.get(name, 0.5)
        if strength:
            strengths[name] = float(strength)
    return probabilities, strengths


def augmentation_type(known: Iterable[str], defaults: Mapping[str, float]) -> Callable[[str], str]:
    """argparse type of one --augment item: refuses an unknown name or a number that is none."""
    known = list(known)

    def augmentation(text: str) -> str:
        try:
            probabilities, _ = parse_augment([text], defaults)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: write name=probability:strength, like affine=.5:1.2") from None
        name = next(iter(probabilities))
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown; choose from {', '.join(known)}")
        return text

    return augmentation
