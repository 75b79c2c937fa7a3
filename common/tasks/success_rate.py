"""--success of ensemble.py: how models rank the tiles they were trained on, beside how they rank others."""

from pathlib import Path

import pandas as pd

from common.errors import InputError
from common.metrics.segmentation import count_columns
from common.outputs.mask_sets import TRAINED, prob_paths, read_set
from common.outputs.predictions import listed


def add_success(parser) -> None:
    """Option of ensemble.py."""
    ranked = parser.add_argument_group("ranking")
    ranked.add_argument("--success", type=Path, metavar="PREDS",
                        help="success-rate curve from predictions of infer.py --rows train")  # fmt: skip


def check_jobs(settings: dict) -> None:
    """InputError for --success where nothing is judged."""
    for option in ("preds", "compare", "fit_post"):
        if settings["success"] and settings[option]:
            raise InputError(f"--success: is for a judgement, --{option.replace('_', '-')} makes none; leave it out")


def read_trained(path: Path | str | None, rows: pd.DataFrame, outputs: tuple[str, ...]) -> pd.DataFrame | None:
    """The set that --success names. InputError where it is none of infer.py --rows train, or of other rows."""
    if path is None:
        return None
    if not (Path(path) / TRAINED).is_file():
        raise InputError(f"--success {path}: holds no {TRAINED}; make it with infer.py --rows train --out {path}")
    frame = read_set(Path(path) / TRAINED)
    prob_paths(f"--success {path}", frame)
    strange = sorted(set(frame["id"]) - set(rows["id"]))
    if strange or [name for name in frame if name.startswith("n_")] != count_columns(len(outputs)):
        why = f"rows that these runs do not have: {listed(strange)}" if strange else f"not {len(outputs)} classes"
        raise InputError(f"--success {path}: holds {why}; predict with one of these runs")
    return frame
