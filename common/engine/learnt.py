"""What a run's out-of-fold predictions taught, post.json, and its use on predictions."""

import contextlib
import tempfile
from pathlib import Path

import pandas as pd

from common.text_files import content_of, read_json

REMEDY = "fit it again (ensemble.py --fit-post, or --save-blend for a blend)"


def read_post(found: list[Path], task) -> dict | None:
    """post.json of one run; for several, what their mean's out-of-fold predictions teach. None: uncalibrated.

    What the rows alone teach is not fitted again: it is that of the first run, and the folds of all are the same.
    """
    paths = [run / "post.json" for run in found]
    learnt = [read_json(path, remedy=REMEDY) for path in paths if path.is_file()]
    if len(found) == 1 and learnt and learnt[0]:
        return learnt[0]
    if len(found) > 1 and len(learnt) == len(found) and all(learnt):
        with tempfile.TemporaryDirectory() as folder:
            frame = task.mean_sets({run.name: task.read_run(run) for run in found}, Path(folder))
            return learnt[0] | task.fit_post(task.truth_of(frame), frame)
    why = "empty" if learnt and not all(learnt) else "missing (not all folds are trained)"
    print(f"uncalibrated: post.json is {why}, nothing learnt is applied")
    return None


def use_post(task, frame: pd.DataFrame, post: dict | None, settings: dict, source: Path) -> pd.DataFrame:
    """`frame` as it is handed in. InputError naming `source`, the file of `post`, where that does not hold what it
    should: somebody may have changed it."""
    with content_of(source, REMEDY) if post else contextlib.nullcontext():
        return task.apply_post(frame, post, settings)
