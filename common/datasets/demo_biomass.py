"""The built-in biomass set in the competition's own format: drawn photos whose covers determine the masses.

    mass of a class = DENSITY * cover ** POWER * noise,   noise of mean 1 and coefficient of variation NOISE

so the noise-free expectation is the best prediction there is, and its score the best reachable one. Only the covers
that are seen count; what differs between groups of date and state (season, light, soil, camera) does not.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from common.datasets.demo_grass import CLASSES, draw_look, draw_photo
from common.errors import InputError
from common.metrics.regression import weighted_r2

DEMO_VERSION = 3
OUTPUTS = ("Dry_Green_g", "Dry_Dead_g", "Dry_Clover_g", "GDM_g", "Dry_Total_g")
DENSITY = {"green": 130.0, "dead": 85.0, "clover": 100.0}
POWER = {"green": 1.25, "dead": 1.25, "clover": 1.25}
NOISE = 0.15
QUALITY = 80
STAMPED = 0.25

# Date, state, species sown there, and the season's usual optical depths of green, dead and clover. The first rows go
# to training, as many as there are groups; TEST_GROUPS only ever to the test photos.
GROUPS = (
    ("2015/1/15", "NSW", ("Fescue",), (0.9, 0.5, 0.0)),
    ("2015/9/4", "Tas", ("Ryegrass_Clover",), (0.35, 0.5, 0.25)),
    ("2015/7/8", "WA", ("Clover", "SubcloverDalkeith"), (0.25, 0.0, 0.6)),
    ("2015/6/26", "Vic", ("Phalaris_Clover", "Ryegrass_Clover"), (0.4, 0.3, 0.15)),
    ("2015/5/18", "Tas", ("Ryegrass_Clover",), (0.25, 0.7, 0.2)),
    ("2015/2/24", "NSW", ("Lucerne",), (0.6, 0.25, 0.0)),
    ("2015/8/14", "Vic", ("Phalaris_BarleyGrass_SilverGrass_SpearGrass_Clover_Capeweed",), (0.5, 0.25, 0.12)),
    ("2015/11/10", "Tas", ("Clover", "WhiteClover"), (0.4, 0.25, 0.7)),
    ("2015/4/1", "NSW", ("Fescue_CrumbWeed",), (0.7, 0.7, 0.0)),
    ("2015/6/29", "Tas", ("Ryegrass",), (0.3, 0.3, 0.0)),
    ("2015/10/13", "Vic", ("Ryegrass_Clover",), (1.0, 0.25, 0.2)),
    ("2015/9/1", "WA", ("SubcloverLosa", "Ryegrass"), (0.4, 0.0, 0.4)),
    ("2015/9/11", "Tas", ("Ryegrass", "WhiteClover"), (0.6, 0.3, 0.3)),
    ("2015/7/1", "Vic", ("Phalaris_Clover_Ryegrass_Barleygrass_Bromegrass",), (0.25, 0.6, 0.15)),
    ("2015/10/6", "NSW", ("Phalaris", "Ryegrass"), (1.4, 0.2, 0.0)),
    ("2015/6/26", "Tas", ("Ryegrass_Clover",), (0.2, 0.25, 0.3)),
    ("2015/8/18", "Vic", ("Phalaris_Ryegrass_Clover",), (0.5, 0.15, 0.25)),
    ("2015/5/7", "NSW", ("Fescue", "Phalaris"), (0.4, 0.9, 0.0)),
    ("2015/11/9", "Tas", ("Ryegrass", "Ryegrass_Clover"), (1.2, 0.4, 0.1)),
    ("2015/9/29", "Vic", ("Mixed", "Ryegrass_Clover"), (0.7, 0.3, 0.2)),
    ("2015/5/19", "Tas", ("Ryegrass_Clover",), (0.3, 0.5, 0.1)),
    ("2015/7/2", "Vic", ("Phalaris_Clover",), (0.3, 0.4, 0.3)),
    ("2015/8/21", "WA", ("Clover",), (0.5, 0.0, 0.5)),
    ("2015/6/30", "Vic", ("Ryegrass",), (0.2, 0.8, 0.0)),
    ("2015/7/1", "Tas", ("Ryegrass", "Ryegrass_Clover"), (0.5, 0.2, 0.2)),
)
TEST_GROUPS = (
    ("2015/9/3", "Tas", ("Ryegrass_Clover",), (0.5, 0.4, 0.25)),
    ("2015/10/14", "Vic", ("Phalaris_Clover", "Ryegrass"), (0.7, 0.3, 0.2)),
)


def plan_groups(seed: int, photos: int, table: tuple, stream: int) -> list[dict]:
    """What to draw for every photo: metadata, look of its group and its own optical depths, in a list of dicts."""
    rng = np.random.default_rng([seed, stream])
    used = table[: max(1, min(len(table), photos // 3))]
    looks, seasons = [], []
    stamped = rng.permutation(len(used)) < round(STAMPED * len(used))
    for (date, *_, usual), stamp in zip(used, stamped, strict=True):
        looks.append(draw_look(rng, "/".join(f"{int(part):02d}" for part in date.split("/")) if stamp else ""))
        seasons.append(np.asarray(usual) * np.exp(rng.normal(0, 0.25, 3)))
    group = np.sort(np.arange(photos) % len(used))
    ids = rng.choice(1_000_000_000, photos, replace=False) + 1_000_000_000
    plans = []
    for k in range(photos):
        date, state, species, _ = used[group[k]]
        kind = species[rng.integers(len(species))]
        loads = 0.65 * seasons[group[k]] * np.exp(rng.normal(0, 0.75) + rng.normal(0, [0.45, 0.45, 0.7]))
        loads[2] *= "lover" in kind
        plan = {"id": f"ID{ids[k]}", "date": date, "state": state, "species": kind, "look": looks[group[k]]}
        plans.append({**plan, "loads": dict(zip(CLASSES, loads.tolist(), strict=True)), "key": [seed, stream, k]})
    return plans


def expected_masses(cover: dict) -> dict:
    """Grams per class without the noise, from {class: share of pixels}."""
    return {name: DENSITY[name] * cover[name] ** POWER[name] for name in CLASSES}


def five_masses(parts: dict) -> dict:
    """The OUTPUTS in grams from {class: grams}, rounded to .1 mg before the sums so that both identities hold."""
    green, dead, clover = (round(float(parts[name]), 4) for name in CLASSES)
    return dict(zip(OUTPUTS, (green, dead, clover, green + clover, green + clover + dead), strict=True))


def draw_row(plan: dict, folder: Path) -> dict:
    """Draw and write one photo; returns its row: metadata, covers, expected and noisy masses."""
    rng = np.random.default_rng([*plan["key"], 7])
    image, cover = draw_photo(rng, plan["loads"], plan["look"])
    path = folder / f"{plan['id']}.jpg"
    if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
        raise InputError(f"{path}: the demo photo could not be written; free some space or choose another folder")
    mean = expected_masses(cover)
    shape = 1 / NOISE**2
    noisy = {name: mean[name] * rng.gamma(shape, 1 / shape) for name in CLASSES}
    ndvi = np.clip(0.2 + 0.65 * (cover["green"] + cover["clover"]) + rng.normal(0, 0.06), 0.05, 0.95)
    height = np.exp(rng.normal(1.2, 0.3)) * (1 + 3 * cover["green"])
    return {
        **{name: plan[name] for name in ("id", "date", "state", "species")},
        "ndvi": round(float(ndvi), 2),
        "height": round(float(height), 4),
        "cover": cover,
        "expected": five_masses(mean),
        "masses": five_masses(noisy),
    }


def draw_rows(plans: list[dict], folder: Path) -> list[dict]:
    """Draw all photos into `folder` on all cores (threads: OpenCV lets go of the lock), rows sorted by id."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        rows = list(
            tqdm(
                pool.map(lambda plan: draw_row(plan, folder), plans),
                "demo photos",
                len(plans),
                unit="photo",
                mininterval=2,
            )
        )
    return sorted(rows, key=lambda row: row["id"])


def long_table(rows: list[dict], split: str, *, metadata: bool) -> pd.DataFrame:
    """The competition's table, five lines a photo; train.csv has the metadata and the masses, test.csv has not."""
    lines = []
    for row in rows:
        for name in sorted(OUTPUTS):
            line = {"sample_id": f"{row['id']}__{name}", "image_path": f"{split}/{row['id']}.jpg"}
            if metadata:
                line |= {"Sampling_Date": row["date"], "State": row["state"], "Species": row["species"]}
                line |= {"Pre_GSHH_NDVI": row["ndvi"], "Height_Ave_cm": row["height"]}
            line["target_name"] = name
            if metadata:
                line["target"] = round(row["masses"][name], 4)
            lines.append(line)
    return pd.DataFrame(lines)


def best_score(rows: list[dict]) -> float:
    """Weighted R2 of the noise-free expectation against the noisy masses: what nobody can beat but by luck."""
    target, pred = ([[row[kind][name] for name in OUTPUTS] for row in rows] for kind in ("masses", "expected"))
    return weighted_r2(np.array(target), np.array(pred))


def make_demo(folder: Path, *, photos: int = 130, test_photos: int = 8, seed: int = 0) -> dict:
    """Write the demo set into `folder`: train.csv, test.csv, sample_submission.csv, train/, test/ and demo.json.

    Returns what demo.json holds: version, seed, photos, noise, `best` (score of the expectation on the training
    rows), and per id `cover` (shares of pixels), `expected` (grams without noise) and, for the test photos that
    come without labels, `test_truth` (grams). The same seed gives the same bytes.
    """
    if photos < 3 or test_photos < 1:
        raise InputError(f"demo set: needs 3 photos and 1 test photo at least, got {photos} and {test_photos}")
    folder = Path(folder)
    train = draw_rows(plan_groups(seed, photos, GROUPS, 0), folder / "train")
    test = draw_rows(plan_groups(seed, test_photos, TEST_GROUPS, 1), folder / "test")
    long_table(train, "train", metadata=True).to_csv(folder / "train.csv", index=False)
    samples = long_table(test, "test", metadata=False)
    samples.to_csv(folder / "test.csv", index=False)
    samples[["sample_id"]].assign(target=0.0).to_csv(folder / "sample_submission.csv", index=False)
    facts = {
        "version": DEMO_VERSION,
        "seed": seed,
        "photos": photos,
        "test_photos": test_photos,
        "noise": NOISE,
        "best": best_score(train),
        "cover": {row["id"]: row["cover"] for row in train + test},
        "expected": {row["id"]: row["expected"] for row in train + test},
        "test_truth": {row["id"]: row["masses"] for row in test},
    }
    (folder / "demo.json").write_text(json.dumps(facts, indent=1))
    return facts
