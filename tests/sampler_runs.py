"""Every way in which tasks choose, mix and multiply what an epoch shows, as options of train.py on tiny data."""

from pathlib import Path

import tiny_data
import tiny_landslide
import tiny_rts
import tiny_tiles

# 9 rows or crops in batches of 4: the last batch has one, so that other processes get padding
BIOMASS = (*tiny_data.SMALL, "--fold", "0", "--no-two-stage", "--dropout", "0", "--lr", "1e-3", "--backbone-lr", "1e-4",
           "--augment", "--swap-prob", "0", "--no-use-aux-heads", "--loss", "smooth-l1")  # fmt: skip
CROPS = ("--crops-per-epoch", "9", "--warmup-epochs", "0")
GLACIER = (*tiny_tiles.SMALL, *CROPS, "--fold", "1", "--augment", "--loss", "dice")
RTS = (*tiny_rts.SMALL, *CROPS, "--fold", "0", "--augment")
LANDSLIDE = (*tiny_landslide.SMALL, *CROPS, "--fold", "0", "--augment")
WORDS = {"biomass": BIOMASS, "glacier": GLACIER, "rts": RTS, "landslide": LANDSLIDE}
SAMPLERS = {
    "biomass": {
        "order": (),
        "augmented": ("--augment", "hflip=.5", "vflip=.5", "affine=.5", "--swap-prob", ".5"),
        "aux": ("--use-aux-heads", "--distill", "--distill-warmup", "1"),
        "mixup": ("--mixup-prob", ".7"),
        "cutmix": ("--mixup-prob", ".3", "--cutmix-prob", ".6", "--mix-within", "state"),
        "shuffled": ("--shuffle-images",),
        "stored": ("--freeze-backbone", "--store-views", "2", "--augment", "hflip=.5", "--mixup-prob", ".5"),
    },
    "glacier": {
        "uniform": (),
        "balanced": ("--sampler", "balanced", "--target-shares", ".3", ".3", ".3", ".1"),
        "boost": ("--boost", "lake=3", "glacier-debris=2"),
        "shuffled": ("--shuffle-images", "--augment", "hflip=.5", "rot90=.5", "noise=.5"),
    },
    "rts": {
        "uniform": ("--sampler", "uniform"),
        "balanced": ("--sampler", "balanced", "--target-shares", ".7", ".3"),
        "ratio": ("--sampler", "ratio", "--ratio", "2"),
        "ramp": ("--sampler", "ratio", "--ratio", "1", "4", "--ratio-epochs", "2"),
        "scales": ("--sampler", "ratio", "--ratio", "1", "--scales-train", ".5", "1", "2", "--augment", "hflip=.5"),
        "soft": ("--sampler", "ratio", "--ratio", "1", "--soft-labels", "distance", "--ignore-rim", "1"),
    },
    "landslide": {
        "uniform": (),
        "balanced": ("--sampler", "balanced", "--boost", "medium=2"),
        "repeated": ("--oversample-target", ".2"),
        "smote": ("--oversample-target", ".22", "--smote", "--augment", "hflip=.5"),
        "smote-pixels": ("--oversample-target", ".4", "--smote", "--smote-mode", "pixels"),
    },
}
ALL = [(task, name) for task, kinds in SAMPLERS.items() for name in kinds]


def make_data(home: Path) -> Path:
    """data/<task>, with folds, of all tasks."""
    tiny_data.make_tiny(home / "biomass")
    tiny_tiles.make_tiles(home / "glacier", tiles=9)
    tiny_rts.make_rts(home / "rts")
    tiny_landslide.make_hills(home / "landslide")
    for task in SAMPLERS:
        folds = () if task == "rts" else ("--folds", "2")
        tiny_tiles.call(home, "make_folds", "--task", task, "--data", task, *folds)
    return home


def words_of(task: str, name: str, *more: str) -> list[str]:
    """Options of train.py for one of them."""
    return [*WORDS[task], "--task", task, "--data", task, "--amp", "off", *SAMPLERS[task][name], *more]
