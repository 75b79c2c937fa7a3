"""--augment: name[=probability[:strength]], read alike by every family."""

import argparse

import pytest

from common.tasks.augmentation import augmentation_type, parse_augment

DEFAULTS = {"hflip": 0.5, "affine": 0.3}


@pytest.mark.parametrize("item, probability, strength", [
    ("hflip", 0.5, None), ("affine", 0.3, None), ("noise", 0.5, None), ("affine=.7", 0.7, None),
    ("affine=.7:1.2", 0.7, 1.2), ("affine=:2", 0.3, 2.0), ("affine=0", 0.0, None), ("hflip=1:", 1.0, None),
])  # fmt: skip
def test_an_item_is_a_name_a_probability_and_a_strength(item, probability, strength):
    name = item.partition("=")[0]
    assert parse_augment([item], DEFAULTS) == ({name: probability}, {} if strength is None else {name: strength})


def test_items_add_up_and_the_last_of_a_name_counts():
    assert parse_augment(["hflip", "affine=1:3", "hflip=.1"], DEFAULTS) == ({"hflip": 0.1, "affine": 1.0},
                                                                            {"affine": 3.0})  # fmt: skip
    assert parse_augment([], DEFAULTS) == ({}, {})


def test_what_is_no_item_is_refused_with_what_to_write():
    check = augmentation_type(["hflip", "affine"], DEFAULTS)
    assert [check(text) for text in ("hflip", "affine=.5:1.2")] == ["hflip", "affine=.5:1.2"]
    with pytest.raises(argparse.ArgumentTypeError, match="'hfilp' is unknown; choose from hflip, affine"):
        check("hfilp")
    with pytest.raises(argparse.ArgumentTypeError, match="'' is unknown"):
        check("=.5")
    for text in ("hflip=often", "affine=.5:strong", "affine=1:2:3"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}': write name=probability:strength"):
            check(text)
