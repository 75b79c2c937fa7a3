"""GlacierHack 2025: background, glacier, debris and lake from five Landsat bands, by the Matthews correlation.

The competition's files are read by datasets/glacier_files.py, pretraining slices are prepared by datasets/hkh.py.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets import blocks, demo_glacier, hkh
from common.datasets import glacier_files as files
from common.datasets.cache import inputs_hash
from common.datasets.folds import FOLDS, TEST
from common.datasets.locate import KAGGLE_INPUT
from common.datasets.tiles import Source
from common.engine.runs import locked
from common.metrics.gates import check_gates
from common.metrics.pixel_baselines import constant_score, logistic_score
from common.metrics.segmentation import class_table, confusion, mcc
from common.outputs.segmentation_report import write_segmentation_report
from common.post.mask_blend import BLENDS, apply_blend
from common.tasks import segmentation_post as maps
from common.tasks.segmentation import make_segmentation_task, validate
from common.tasks.segmentation_data import study_tiles
from common.tasks.segmentation_options import parse_label_map

BANDS = tuple(files.BANDS)
VALUES = {2: (0, 255), 3: (0, 85, 170), 4: (0, 85, 170, 255)}  # of the classes in a mask
# From random weights on the real tiles: see recipes/glacier-scratch.yaml and LOG.md.
DEFAULTS = {"weights": "none", "epochs": 60, "lr": 1e-3, "batch_size": 8, "ema_decay": 0.98, "encoder": "resnet34"}
# For two cores and the drawn tiles: about half a minute a fold.
DEMO_DEFAULTS = {
    "encoder": "tu-test_byobnet",
    "decoder": [64, 48, 32, 24, 16],
    "crop": 128,
    "batch_size": 6,
    "crops_per_epoch": 120,
    "epochs": 18,
    "lr": 3e-3,
    "ema_decay": 0.97,
    "sampler": "balanced",
    "target_shares": [0.55, 0.27, 0.14, 0.04],
    "augment": ["hflip=.5", "vflip=.5", "rot90=.75"],
    "workers": 0,
    "samples_every": 18,
}
# What a model should reach, by level; mean IoU and the classes over pixels with data, MCC over all.
GATES = {
    "minimum": {"mcc": 0.70},
    "target": {
        "mcc": 0.75, "mean_iou": 0.70, "least_iou": 0.60, "recall_lake": 0.50, "recall_debris": 0.70,
    },
    "stretch": {"mcc": 0.78, "recall_lake": 0.60},
}  # fmt: skip


def outputs_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """The classes of rows (their share columns) or of a set (its counts)."""
    counts = sum(name.startswith("n_") for name in frame)
    if counts:
        return files.CLASSES[: round(counts**0.5)]
    return tuple(name for name in files.CLASSES if name in frame)


def label_maps(rows: pd.DataFrame, settings: dict) -> dict[int, int]:
    """The label map of rows: as given, else that of the phase whose classes the rows have."""
    given = parse_label_map(settings["label_map"])
    if given:
        return given
    return files.LABEL_MAPS[{2: 1, 3: "hkh", 4: 2}[len(outputs_of(rows))]]


def prepared(data: Path, cache: str) -> Path:
    """The folder of tiles: `data` itself, or what is prepared, once, of the HKH slices in it."""
    if not any(data.glob("slice_*_img_*.npy")):
        return data
    slices = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(data.glob("slice_*.npy"))]
    folder = Path(cache) / f"hkh-{inputs_hash('hkh', {'slices': slices, 'version': hkh.VERSION})}"
    with locked(folder):  # of several processes one prepares
        rows, facts = hkh.prepare(data, folder)
    print(f"HKH: {facts['kept']} of {facts['slices']} slices have enough glacier ({folder})")
    return folder


def read_rows(data: Path, settings: dict) -> pd.DataFrame:
    rows = files.read_rows(prepared(Path(data), settings.get("cache", "cache")))
    known = files.label_map(rows["label"], parse_label_map(settings["label_map"]))
    rows = files.class_shares(rows, known, files.outputs_of(known))
    if settings.get("shuffle_images"):
        rows["label"] = np.random.default_rng(0).permutation(rows["label"].to_numpy())
        print("SHUFFLED: labels were exchanged between tiles at random; the score must be a constant's")
    return rows


def read_test(data: Path) -> pd.DataFrame:
    """Rows to be predicted: of Test/, or of the folder itself; none where there are only training tiles."""
    data = Path(data)
    if files.child(data, "Test") is None and files.child(data, "Band1") is None:
        return pd.DataFrame({"id": [], "path": []}, dtype=str)
    return files.read_rows(data, require_labels=False)[["id", "path"]]


def make_folds(rows: pd.DataFrame, *, scheme: str, folds: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(fold, group) by a scheme of datasets/blocks.py; where rows bring few scenes, as many folds as there are."""
    if folds is None and "group" in rows:
        folds = min(FOLDS, rows["group"].nunique())
    return blocks.make_folds(rows, scheme=scheme, folds=folds, seed=seed, outputs=outputs_of(rows))


def files_of(path: str) -> list[Path]:
    """The five files of a tile, by its Band1 file; an npy slice alone."""
    path = Path(path)
    if path.suffix == ".npy":
        return [path]
    key = files.tile_id(path)
    return [files.list_tiles(path.parent.parent, folder)[key] for folder in files.BANDS.values()]


def read_tile(path: str, bands) -> np.ndarray:
    """All five bands: this competition has no choice of them."""
    return files.read_tile(path)


def size_of(path: str) -> tuple[int, int]:
    profile = files.profile_of(path)
    return profile["height"], profile["width"]


def study_data(rows, test, fold, settings: dict, **studies) -> list[str]:
    """The findings of study_tiles; the tiles of Test/ are rows of their own."""
    both = pd.concat([rows[["id", "path"]], test], ignore_index=True)
    side = np.concatenate([np.asarray(fold), np.full(len(test), TEST)])
    return study_tiles(both, side, both["id"], files.read_tile, BANDS, **studies)


def score_hidden(frame: pd.DataFrame, data: Path) -> list[str]:
    """How the masks of a demo set's test tiles compare with its hidden labels."""
    hidden = files.child(Path(data), "hidden")
    if hidden is None:
        return []
    paths = dict(zip(*read_test(data)[["id", "path"]].to_numpy().T, strict=True))
    known = files.LABEL_MAPS[2]
    counts = 0
    for name, mask in zip(frame["id"], frame["mask"], strict=True):
        target = files.read_label(hidden / Path(paths[name]).name, known)
        counts = counts + confusion(target, mask, None, len(files.CLASSES))
    table = class_table(counts, files.CLASSES)
    found = ", ".join(f"{row['class']} {row['recall']:.3f}" for _, row in table.iterrows())
    return [f"hidden truth of {len(frame)} test tiles: MCC {mcc(counts):.4f}; recall {found}"]


def baselines(rows: pd.DataFrame, facts: dict, settings: dict) -> tuple[dict[str, float], dict]:
    """What stands beside a score: a constant, a logistic regression on pixels, and what a demo set lets one reach."""
    outputs = outputs_of(rows)
    known = rows[rows["fold"] != TEST].reset_index(drop=True)
    label = label_maps(rows, settings)
    pixels = {"read_tile": files.read_tile, "read_target": lambda path: files.read_label(path, label)}
    scores = {"constant": constant_score(known, **pixels, classes=len(outputs))}
    scores["logistic"] = logistic_score(known, **pixels, classes=len(outputs))
    return scores | ({"reachable": facts["best"]} if "best" in facts else {}), {}


def report(path: Path, judgement: dict, members: list[dict], beside: dict, settings: dict) -> Path:
    rows = judgement["rows"]
    there = "path" in rows and all(Path(name).is_file() for name in rows["path"])
    return write_segmentation_report(
        path,
        title="Glacier classes, out of fold",
        outputs=outputs_of(judgement["honest"]),
        rows=rows,
        members=members,
        judgement=judgement,
        beside=beside,
        read_picture=(lambda row: files.read_tile(row["path"])) if there else None,
        read_target=maps.target_reader({member["name"]: member["oof"] for member in members}),
        bands=BANDS,
        settings=settings,
        shown=maps.shown_shares(members[0]),
        gates=check_gates(judgement["metrics"], GATES[settings.get("gates") or "target"]),
        findings=check_tiles(rows) if set(outputs_of(judgement["honest"])) <= set(rows) else None,
    )


def check_tiles(rows: pd.DataFrame) -> list[str]:
    """How many tiles hold each class, and its share of the pixels with data."""
    lines = []
    for name in outputs_of(rows):
        tiles = int((rows[name] > 0).sum())
        share = rows[name].mean()
        lines.append(f"{name}: in {tiles} of {len(rows)} tiles, {share:.2%} of the pixels with data on average")
    return lines


def add_arguments(parser, script: str) -> None:
    if script == "infer":
        hand_in = parser.add_argument_group("what is handed in")
        hand_in.add_argument("--solution", type=Path, metavar="DIR",
                             help="write solution.py and model.pth to DIR instead of predictions")  # fmt: skip


SOURCE = Source(read_tile=read_tile, read_label=files.read_label, files_of=files_of, size_of=size_of, mapped=True)
TASK = make_segmentation_task(
    name="glacier",
    slug="glacierhack",
    outputs=files.CLASSES,
    bands=BANDS,
    source=SOURCE,
    outputs_of=outputs_of,
    label_maps=label_maps,
    read_test=read_test,
    add_arguments=add_arguments,
    search=lambda: [Path("weights"), KAGGLE_INPUT],
    markers={"train": ("Train/Band1|Band1|tiles.csv|slice_*_img_*.npy",), "test": ("Test/Band1|Band1",)},
    defaults=DEFAULTS,
    demo_defaults=DEMO_DEFAULTS,
    demo_version=demo_glacier.DEMO_VERSION,
    schemes=tuple(blocks.SCHEMES),
    make_demo=demo_glacier.make_demo,
    read_rows=read_rows,
    read_truth=maps.read_truth_folder(read_rows),
    make_folds=make_folds,
    describe_folds=lambda rows, fold, group: blocks.describe_folds(rows, fold, group, outputs=outputs_of(rows)),
    check_data=check_tiles,
    study_data=study_data,
    fit_post=partial(maps.fit_post, outputs_of=outputs_of),
    apply_post=partial(maps.apply_post, values=VALUES),
    validate=partial(validate, read_test=read_test, values=VALUES[4]),
    blends=("greedy", *sorted(set(BLENDS) - {"greedy"})),
    judge=partial(maps.judge, outputs_of=outputs_of, classes=files.CLASSES),
    blend=apply_blend,
    compare=partial(maps.compare, outputs_of=outputs_of),
    score_hidden=score_hidden,
    gates=GATES,
    baselines=baselines,
    report=report,
    exports={"solution": partial(maps.export_solution, values=VALUES)},
)
