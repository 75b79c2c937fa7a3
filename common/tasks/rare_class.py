"""The segmentation family where one class is rare: balanced scores, ratios, calibration, the one final test."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from common.datasets.folds import TEST, folds_hash
from common.engine.runs import read_makers
from common.errors import InputError
from common.files import atomic_write
from common.metrics.rare_baselines import everywhere_score, pixel_score
from common.metrics.segmentation import counts_of
from common.outputs.mask_sets import prob_paths, read_set
from common.outputs.masks import read_beside, read_logit
from common.post import detection_judge
from common.post.detection_fit import CLEANS, KINDS, balanced_counts, cut_of
from common.post.detection_maps import Cut, cut_mask
from common.post.morphology import finish_mask
from common.post.prevalence import pixel_scores
from common.table_files import read_csv
from common.tasks.segmentation_options import parse_label_map
from common.text_files import parse_json, read_json

BLENDS = KINDS
TESTED = Path("runs") / "final-tests.csv"
FINAL = "final-test.json"  # of a run: what came out
GATES = {
    "minimum": {"balanced_iou": 0.5, "object_precision_500": 0.5},
    "production": {"balanced_iou": 0.6, "object_precision_500": 0.8, "object_recall_500": 0.6, "ece": 0.05},
}
UNCALIBRATED = {"temperature": 1.0, "threshold": 0.5}
AIMS = {"ratios": [200.0, 500.0, 1000.0], "target_precision": 0.8}  # options of ensemble.py and their defaults
MASKS = {"threshold": None, "at_ratio": None, "clean": CLEANS[0], "fill_holes": 0}  # those of masks, and theirs
JOBS = ("preds", "final_test", "calibrate", "fit_post", "compare")
IGNORED = {
    "preds": AIMS,
    "final_test": MASKS | AIMS | {"min_blob": None},
}  # by the other jobs, which fit: those of masks


def add_post(parser) -> None:
    """Options of infer.py and ensemble.py: how probabilities become masks."""
    post = parser.add_argument_group("post-processing")
    post.add_argument("--threshold", type=float, metavar="P", help="calibrated probability above which pixels are "
                      "of the class (default: as fitted)")  # fmt: skip
    post.add_argument("--at-ratio", type=float, metavar="R",
                      help="what was fitted for R negative tiles a positive (1: best balanced IoU)")  # fmt: skip
    post.add_argument("--clean", choices=CLEANS, default=MASKS["clean"],
                      help="what is dropped for the precision wanted: whole blobs of a small mean probability, their "
                      "outlines as of the best balanced IoU, or pixels (default %(default)s)")  # fmt: skip
    post.add_argument("--min-blob", type=int, metavar="PX", help="smaller blobs are dropped (default: as fitted)")
    post.add_argument(
        "--fill-holes",
        type=int,
        default=MASKS["fill_holes"],
        metavar="PX",
        help="holes under so many pixels are filled",
    )


def add_jobs(parser) -> None:
    """What ensemble.py has for one rare class."""
    what = parser.add_argument_group("calibration and final test")
    what.add_argument("--ratios", type=float, nargs="+", default=AIMS["ratios"], metavar="R",
                      help="negative tiles a positive of the realistic sets")  # fmt: skip
    what.add_argument("--target-precision", type=float, default=AIMS["target_precision"], metavar="P",
                      help="of pixels, for thresholds")  # fmt: skip
    what.add_argument("--calibrate", action="store_true", help="fit temperature and thresholds, print and keep them")
    what.add_argument("--final-test", nargs="?", const=True, type=Path, metavar="PREDS",
                      help="score predictions of the test rows, once (default: preds/<run>)")  # fmt: skip
    what.add_argument("--again", action="store_true", help="score a test set that was scored before")


def check_jobs(settings: dict) -> None:
    """InputError for an option of ensemble.py that says how masks or thresholds are made, where none are."""
    job = next((name for name in JOBS if settings[name]), None)
    for name, default in IGNORED.get(job, MASKS).items():
        if settings[name] != default:
            what = f"with --{job.replace('_', '-')}" if job else "where nothing is written as masks"
            where = "when --calibrate fits" if name in (AIMS | {"min_blob": None}) else "with --preds, or to infer.py"
            raise InputError(f"--{name.replace('_', '-')}: does nothing {what}; give it {where}")


def read_map(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return read_logit(path), read_beside(path, "valid"), read_beside(path, "target")


def score(rows: pd.DataFrame, frame: pd.DataFrame) -> dict:
    """{"score": IoU of the class at .5 with as many negative tiles as positive ones, "precision", "recall", …}."""
    counts = counts_of(frame, 2)
    positive = counts[:, 1].sum(axis=1) > 0
    found = pixel_scores(*balanced_counts(counts, positive))
    values = {"score": found["iou"], "precision": found["precision"], "recall": found["recall"]}
    predicted = int(counts[:, :, 1].sum())
    values = {key: 0.0 if np.isnan(value) else float(value) for key, value in values.items()}
    return values | {"predicted": predicted / max(int(counts.sum()), 1), "predicts_nothing": predicted == 0}


def say_epoch(record: dict) -> list[str]:
    if record.get("score") is None:
        return []
    trained = f", {record['train_predicted']:.3%} in training" if "train_predicted" in record else ""
    return [f"at 1:1 and .5: IoU {record['score']:.4f}, precision {record['precision']:.3f}, recall "
            f"{record['recall']:.3f}; {record['predicted']:.3%} of the pixels predicted{trained}"]  # fmt: skip


def aim_of(settings: dict) -> dict:
    """What thresholds are fitted for, of options or defaults."""
    ratios, precision = (settings.get(name, default) for name, default in AIMS.items())
    ratios = tuple(ratios)
    if min(ratios) <= 0 or not 0 < precision < 1:
        raise InputError("--ratios are numbers above 0, --target-precision is between 0 and 1")
    main = 200.0 if 200.0 in ratios else ratios[0]
    return {"ratios": ratios, "main_ratio": main, "target_precision": precision,
            "min_blob": blob_of(None, settings)}  # fmt: skip


def judge(rows: pd.DataFrame, sets: dict, settings: dict) -> dict:
    for name, frame in sets.items():
        prob_paths(name, frame)
    options = aim_of(settings) | {"kind": settings["kind"], "seed": settings["seed"]}
    judgement = detection_judge.judge(rows, sets, read_map=read_map, **options)
    asked = {name: np.nan for gates in GATES.values() for name in gates}  # where no negatives tell of a ratio
    return judgement | {"metrics": asked | judgement["metrics"]}


def fit_post(rows: pd.DataFrame, frame: pd.DataFrame, settings: dict | None = None) -> dict:
    """post.json: temperature and thresholds; nothing where only counts were kept."""
    if "prob" not in frame:
        return {}
    return detection_judge.fit_post(rows, frame, read_map=read_map, **aim_of(settings or {}))


def cut_of_settings(post: dict | None, settings: dict) -> Cut:
    """What makes a mask, of options: threshold and temperature, least pixels and mean calibrated probability of a blob.

    --threshold is one of pixels: with it no blob is dropped for its probability.
    """
    given = settings["threshold"]
    if given is not None and not 0 < given < 1:
        raise InputError(f"--threshold {given}: give a probability between 0 and 1")
    if given is None and settings["at_ratio"] is not None and not post:
        raise InputError("--at-ratio: nothing was fitted; ensemble.py --runs … --calibrate first, or give --threshold")
    options = {"ratio": settings["at_ratio"], "min_blob": blob_of(post, settings), "by": settings["clean"]}
    return cut_of(post or UNCALIBRATED, threshold=given, **options)


def blob_of(post: dict | None, settings: dict) -> int:
    """Pixels under which a blob is dropped: of the call, else as the thresholds were fitted."""
    given = settings.get("min_blob")
    if given is not None and given < 0:
        raise InputError(f"--min-blob {given}: give a number of pixels, 0 for none")
    return (post or UNCALIBRATED).get("min_blob", 0) if given is None else given


def apply_post(frame: pd.DataFrame, post: dict | None, settings: dict, *, values) -> pd.DataFrame:
    """The masks as they are handed in: columns "mask", uint8 (H,W), and "values", the raw value of each class."""
    if settings["fill_holes"] < 0:
        raise InputError(f"--fill-holes {settings['fill_holes']}: give a number of pixels, 0 for none")
    cut, masks = cut_of_settings(post, settings), []
    for path in prob_paths("the set", frame):
        logit, valid = read_logit(path), read_beside(path, "valid")
        mask = cut_mask(logit, valid, cut)
        hot = np.stack([mask == 0, mask == 1]).astype(np.float32)
        masks.append(finish_mask(hot, valid, thresholds=[0.5, 0.5], min_area=[0], fill_holes=settings["fill_holes"]))
    return frame.assign(mask=masks, values=[values] * len(masks))


def compare(rows: pd.DataFrame, sets: dict, settings: dict) -> pd.DataFrame:
    """A line per run: its balanced IoU, and what is honestly reached at the realistic ratios."""
    lines = []
    for name, frame in sets.items():
        found = detection_judge.judge(rows, {name: frame}, read_map=read_map, **aim_of(settings))
        lines.append({"run": name} | found["metrics"])
    return pd.DataFrame(lines)


def baselines(rows: pd.DataFrame, facts: dict, settings: dict, *, files) -> tuple[dict[str, float], dict]:
    """What stands beside a score: the class everywhere, logistic regression on pixels, what a demo set allows."""
    known = rows[rows["fold"] != TEST].reset_index(drop=True)
    bands, known_values = settings["bands"], parse_label_map(settings["label_map"])
    pixels = {"read_tile": lambda path: files.read_tile(path, bands),
              "read_target": lambda label: files.read_label(label, known_values)}  # fmt: skip
    scores = {"constant": everywhere_score(known, **pixels), "logistic": pixel_score(known, **pixels)}
    best = facts.get("best" if set(bands) - set(files.RGB) else "best_rgb")
    return scores | ({} if best is None else {"reachable": best}), {}


def say_tables(tables: dict[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        print(f"{name}:\n{table.round(4).to_string(index=False)}")


def calibrate(rows: pd.DataFrame, sets: dict, found: list[Path], settings: dict) -> int:
    """--calibrate: temperature and thresholds of every run, printed with what they honestly do, kept in post.json."""
    for run in found:
        judgement = detection_judge.judge(rows, {run.name: sets[run.name]}, read_map=read_map, **aim_of(settings))
        tables = judgement["tables"]
        say_tables({name: tables[name] for name in ("calibration", "thresholds", "negatives")})
        post = fit_post(rows, sets[run.name], settings)
        print(f"post-processing: {atomic_write(run / 'post.json', json.dumps(post, indent=1) + chr(10))}")
    return 0


def hash_of(frame: pd.DataFrame) -> str:
    """What a test set is: its tiles and their truth."""
    content = hashlib.sha256()
    for name, path in sorted(zip(frame["id"], frame["prob"], strict=True)):
        content.update(name.encode() + np.packbits(read_beside(path, "target") == 1).tobytes())
    return content.hexdigest()[:16]


def check_maker(folder: Path, run: Path) -> None:
    """InputError where spec.json beside a set does not say that this run alone made it, by the folds it has now."""
    made = read_makers(folder)
    if [(one.get("run"), one.get("folds_hash")) for one in made] != [(run.name, folds_hash(run / "folds.csv"))]:
        names = " ".join(one.get("run", "unknown") for one in made)
        said = f"made by {names}" if names != run.name else "made by a run of this name with other folds"
        raise InputError(f"--final-test: the predictions in {folder} are {said}; run infer.py --runs {run.name} --rows "
                         f"test --out {folder}")  # fmt: skip


def test_set(rows: pd.DataFrame, folder: Path, run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(test rows, their set). InputError where the folder holds no predictions of just these rows by the run."""
    tested = rows[rows["fold"] == TEST].reset_index(drop=True)
    if not len(tested):
        raise InputError("--final-test: the folds keep no test rows (fold -1); make them with a test split")
    if not (folder / "pred.csv").is_file():
        raise InputError(f"--final-test: no predictions in {folder}; run infer.py --runs … --rows test --out {folder}")
    check_maker(folder, run)
    frame = read_set(folder)
    if set(frame["id"]) != set(tested["id"]):
        raise InputError(f"{folder}: its rows are not the {len(tested)} test rows of the folds; predict those")
    return tested, frame


def tests_before(frame: pd.DataFrame, run: Path) -> tuple[pd.DataFrame, list[str]]:
    """(the tests kept so far, names of the runs that were scored on some of these tiles, whatever their labels).

    A test of this set by this run that left no result was killed before anybody could see one: it is made again.
    """
    if not TESTED.is_file():
        return pd.DataFrame(columns=["run", "test_set", "tiles", "ids"]), []
    known = read_csv(TESTED, text=None, remedy="move it away, or correct it")
    if "ids" not in known:
        raise InputError(f"{TESTED}: does not say which tiles were scored (no column ids); move it away or add them")
    if not (run / FINAL).is_file():
        known = known[(known["run"] != run.name) | (known["test_set"] != hash_of(frame))]
    met = [not set(parse_json(ids, TESTED, wanted=list)).isdisjoint(frame["id"]) for ids in known["ids"]]
    return known, known["run"][met].tolist()


def final_tables(rows: pd.DataFrame, frame: pd.DataFrame, post: dict) -> tuple[float, dict[str, pd.DataFrame]]:
    """(balanced IoU, tables at every ratio that post.json has)."""
    parts: dict[str, list] = {}
    for line in post["ratios"].values():
        result = detection_judge.final_report(rows, frame, post, read_map=read_map, ratio=line["ratio"])
        for name, table in result["tables"].items():
            if "ratio" not in table:
                table.insert(0, "ratio", line["ratio"])
            parts.setdefault(name, []).append(table)
    return result["score"], {name: pd.concat(found).drop_duplicates() for name, found in parts.items()}


def final_test(rows: pd.DataFrame, sets: dict, found: list[Path], settings: dict) -> int:
    """--final-test: pixels, blobs and calibration on the test rows, with nothing fitted there; a second time only when
    --again says so, since a test set that is looked at twice is tuned on. It counts as scored before it is shown."""
    if len(found) > 1:
        raise InputError("--final-test: of one run, the one that is handed on; it is scored once")
    run = found[0]
    given = settings["final_test"]
    tested, frame = test_set(rows, Path("preds") / run.name if given is True else Path(given), run)
    known, before = tests_before(frame, run)
    if before and not settings["again"]:
        raise InputError(f"--final-test: this test set was scored before (run {', '.join(before)}, {TESTED}; what came "
                         f"out is in its {FINAL}); a choice made after that is tuned on it. --again scores it "
                         "nevertheless and says so")  # fmt: skip
    path = run / "post.json"
    if not path.is_file() or not (post := read_json(path)):
        raise InputError(f"--final-test: {path} holds nothing; ensemble.py --runs {run.name} --calibrate first")
    score, tables = final_tables(tested, frame, post)
    line = {"run": run.name, "test_set": hash_of(frame), "tiles": len(frame), "ids": json.dumps(sorted(frame["id"]))}
    atomic_write(TESTED, pd.concat([known, pd.DataFrame([line])]).to_csv(index=False))
    kept = atomic_write(run / FINAL, final_json(tables))
    if before:
        print(f"AGAIN: this test set was scored before, {len(before)} times")
    print(f"final test of {run.name} on {len(tested)} tiles: balanced IoU {score:.4f}")
    say_tables(tables)
    print(f"kept: {kept}, {TESTED}")
    return 0


def final_json(tables: dict[str, pd.DataFrame]) -> str:
    return json.dumps({name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}, indent=1)
