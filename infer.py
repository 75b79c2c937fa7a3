"""Checkpoints -> preds/<name>/: predictions over views and folds, post-processed and ready to hand in.

python infer.py --runs runs/biomass-2x2-s42 --data DIR --tta hflip vflip swap --out preds/2x2
python infer.py --runs runs/biomass-2x2-s42 --data DIR --rows oof     # gives the run's out-of-fold predictions back
python infer.py --runs RUN --scene scenes/*.tif --out preds/map       # whole rasters, for tasks that map
"""

import argparse
import sys
from pathlib import Path

from common.datasets.folds import TEST, folds_hash, join_folds, read_folds
from common.engine import budget, runs
from common.engine import device as devices
from common.engine.checkpoint import build, checkpoint_file
from common.engine.holding import ANOTHER_OUT, hold_all
from common.engine.learnt import read_post, use_post
from common.engine.predict import passes
from common.engine.rows import (
    marked,
    mean_of_predicted,
    predict_folds,
    predict_rows,
    read_alike,
    rows_of_fold,
    with_fold,
)
from common.engine.tta import check_views
from common.errors import InputError, run_script
from common.session import begin, check_trained, inside_demo, make_parser, pick_task, with_data_of
from common.settings import duration, peek, positive
from common.tasks import TASKS

FLAG = argparse.BooleanOptionalAction
SETS = {"test": ("pred", "prob"), "oof": ("oof", "oof"), "train": ("train", "train")}  # rows -> set, folder of maps
SCENE_BATCH = 4  # windows a step at most where no number is given: that of training may fill a whole card with 512 px


def parser_of(task):
    parser = make_parser("infer", task, TASKS, __doc__.splitlines()[0])
    what = parser.add_argument_group("what to predict")
    what.add_argument("--runs", nargs="+", type=Path, required=True, help="run folders; several are averaged")
    what.add_argument("--fold", type=int, nargs="+", help="only these folds (default: all of the run)")
    what.add_argument("--use", choices=("ema", "last", "best"), help="weights (default: as the run was trained with)")
    what.add_argument("--rows", choices=list(SETS), default="test",
                      help="test, each fold's validation rows, or each row by a fold trained on it")  # fmt: skip
    if task.map_scenes:
        what.add_argument("--scene", nargs="+", type=Path, help="map these rasters, or those of a folder, instead")
    what.add_argument("--tta", nargs="*", default=[], metavar="VIEW", help="views beside the identity, e.g. hflip swap")
    what.add_argument("--out", type=Path, help="folder (default: preds/<name of the first run>)")
    what.add_argument("--allow-bad-images", action=FLAG, default=False, help="exit 0 though an image was unreadable")
    what.add_argument("--time-budget", type=duration, metavar="TIME",
                      help="8.5h, 30m, 90s: give up views, folds and at last rows, to be done in time")  # fmt: skip
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device-type", choices=devices.DEVICE_TYPES, default="auto", help="where to compute")
    machine.add_argument("--amp", choices=("auto", "off", *devices.AMP_TYPES), default="auto", help="mixed precision")
    machine.add_argument("--batch-size", type=positive, help="rows a process (default: as in training, scenes up to 4)")
    machine.add_argument("--workers", type=int, default=2, help="loader processes (0 = in this one)")
    machine.add_argument("--cache-images", action=FLAG, default=False, help="keep decoded images for the next call")
    task.add_arguments(parser, "infer")
    return parser


def fold_names(run: Path, wanted: list[int] | None) -> list[str]:
    """Folds of a run to use. InputError where one that the run's folds.csv expects was never finished."""
    finished = runs.finished_folds(run)
    if wanted:
        expected = [str(fold) for fold in wanted]
    elif finished == ["all"]:
        return finished
    else:
        expected = [str(fold) for fold in runs.expected_folds(read_folds(run / "folds.csv"))]
    missing = [fold for fold in expected if fold not in finished]
    if missing:
        raise InputError(
            f"{run}: fold {', '.join(missing)} of {len(expected)} is not finished; train it or choose with --fold"
        )
    return expected


def load_run(run: Path, task, wanted, use: str | None, device):
    """[(fold, model, checkpoint content)] of a run. InputError for another task or folds that were mixed."""
    loaded = []
    for fold in fold_names(run, wanted):
        folder = run / f"fold{fold}"
        chosen = use or runs.read_settings(folder)["use"]
        model, content = build(checkpoint_file(folder, chosen), TASKS, use=chosen, device=device)
        if content["spec"]["task"] != task.name:
            raise InputError(
                f"{folder}: made for task {content['spec']['task']}; give --task {content['spec']['task']}"
            )
        loaded.append((fold, model, content))
    if len({content["folds_hash"] for _, _, content in loaded}) > 1:
        raise InputError(f"{run}: its folds were trained on different folds.csv; train them again with one")
    return loaded


def predict_run(session, run: Path, machine, rows, deadlines: tuple):
    """(frame, facts, bad ids, ids that no time was left for) of one run: test rows by the mean of all folds, else each
    row once by the fold that `rows_of_fold` says."""
    task, args = session.task, session.args
    loaded = load_run(run, task, args.fold, args.use, machine.device)
    if args.rows == "oof" and loaded[0][0] == "all":
        raise InputError(f"{run}: --rows oof needs folds, a full fit has no validation rows; train.py --train-folds …")
    spec, trained = loaded[0][2]["spec"], loaded[0][2]["args"]
    views = check_views(args.tta, spec["views"])
    settings = session.settings | {"seed": 0, "batch_size": args.batch_size or trained["batch_size"]}
    options = {"views": views, "on_bad": "mark", "folder": maps_folder(args, run), "whole": True}
    plan, left, joined = None, [], None
    if args.rows != "test":
        dropped = task.dropped_ids(runs.run_settings(run))
        joined = join_folds(rows, read_folds(run / "folds.csv"), run / "folds.csv", dropped=dropped)
    if machine.main:  # a call that is refused leaves a set that is there what it is
        runs.begin_set(out_folder(args))
    if args.rows == "test":
        plan = deadlines[0] and make_plan(task, loaded, views, deadlines, machine, run.name)
        folds = [(fold, model, content["spec"]) for fold, model, content in loaded]
        options |= {"progress": run.name, "plan": plan}
        frame, bad, left = predict_folds(task, folds, rows, settings, machine, **options)
        frames = [frame]
    else:
        frames, bad = [], []
        for fold, model, content in loaded:
            part = rows_of_fold(joined, fold, args.rows)
            if not len(part):  # a single fold is not trained on its own rows
                continue
            predicted = predict_rows(task, [model], part, content["spec"], settings, machine, progress=fold, **options)
            frames.append(with_fold(task.make_frame(predicted, content["spec"], part), part))
            bad += marked(predicted)
    print(f"{run.name}: {len(loaded)} folds x {len(views)} views ({' '.join(views)}), {sum(map(len, frames))} rows")
    facts = {"run": run.name, "folds": [fold for fold, _, _ in loaded], "views": views, "task": task.name}
    facts |= {"use": args.use or trained["use"], "folds_hash": loaded[0][2]["folds_hash"], "units": task.units}
    if plan:
        facts["time_budget"] = plan.facts(facts["folds"], len(left))
        for line in plan.lines(facts["folds"], len(left)):
            print(line)
    return task.concat(frames), facts, bad, set(left)


def make_plan(task, loaded, views: list[str], deadlines: tuple, machine, name: str) -> budget.Plan:
    """What the rows of a run get until its deadline, or until the other one before rows are given up."""
    models, in_turn = [model for _, model, _ in loaded], not read_alike(task, [one["spec"] for _, _, one in loaded])
    cost = lambda views, folds: passes(models[:folds], views)  # noqa: E731
    until, limit = deadlines
    options = {"passes": cost, "machine": machine, "name": name, "in_turn": in_turn, "limit": limit}
    return budget.Plan(until, views, len(models), **options)


def out_folder(args) -> Path:
    return args.out or Path("preds") / runs.find_run(args.runs[0]).name


def maps_folder(args, run: Path) -> Path:
    """Where the maps of one run are kept: the set's own place, or beside it where several runs are averaged."""
    folder = out_folder(args) if len(args.runs) == 1 else out_folder(args) / run.name
    return folder / SETS[args.rows][1]


def main(argv=None):
    began, argv = budget.now(), sys.argv[1:] if argv is None else argv
    first = peek(argv, "--runs")
    known = runs.run_settings(runs.find_run(first)) if first else {}
    task, argv = pick_task(TASKS, argv, known.get("task")), with_data_of(argv, known)
    exported = any(peek(argv, f"--{name}") for name in task.exports)
    split = None if exported or peek(argv, "--scene") else "test" if peek(argv, "--rows") in (None, "test") else "train"
    session = begin(parser_of(task), task, argv, split=split, without=("batch_size", "use"))
    args = session.args
    check_budget(session, exported)
    found = [runs.find_run(run) for run in args.runs]
    for run in found:
        check_trained(task, settings := runs.run_settings(run), settings.path)
    devices.set_threads()
    machine = devices.start_machine(args.device_type, args.amp)
    if exported:
        return export(session, found, machine)
    if task.map_scenes and args.scene:
        return map_scenes(session, found, machine)
    with hold_all([out_folder(args)], ANOTHER_OUT, machine):
        return predict_sets(session, found, machine, began)


def predict_sets(session, found, machine, began: float) -> int:
    """Every run's predictions and what is made of them, in --out."""
    if len({folds_hash(run / "folds.csv") for run in found}) > 1:
        raise InputError("--runs: they were trained on different folds; blend only runs of the same folds.csv")
    args, rows = session.args, read_asked(session, found[0])
    sets, facts, bad, left = {}, [], [], {}
    for run in found:
        deadline = budget.share(began, args.time_budget, len(found) - len(sets))
        # a row's second opinion is worth less than another row's first
        limit = deadline if sets else budget.share(began, args.time_budget, 1)
        frame, said, unread, left[run.name] = predict_run(session, run, machine, rows, (deadline, limit))
        sets[run.name] = frame
        facts.append(said)
        bad += unread
    if not machine.main:
        return 0
    return write_out(session, found, sets, facts, bad, left)


def check_budget(session, exported: bool) -> None:
    """InputError where --time-budget is asked of a job that cannot give anything up."""
    args = session.args
    if args.time_budget and (args.rows != "test" or exported or session.settings.get("scene")):
        raise InputError("--time-budget: is for test rows alone; leave it out with --rows, --scene or an export")


def read_asked(session, run: Path):
    """The rows of --rows: test rows, which are those of the run's folds where the data has no others, or all of it."""
    task, settings = session.task, runs.run_settings(run)
    if session.args.rows != "test":
        return task.read_rows(session.data, settings)
    rows = task.read_test(session.data)
    folds = read_folds(run / "folds.csv")
    known, held = (set(folds["id"][(folds["fold"] == TEST) == tested]) for tested in (True, False))
    own = task.one_folder and held <= set(rows["id"])  # the run's own tiles, with labels that --labels told of
    rows = rows[~rows["id"].isin(held)].reset_index(drop=True) if own else rows
    if len(rows) and not (own and known):
        return rows
    if not known:
        raise InputError(f"{run / 'folds.csv'}: keeps no test rows, and {session.data} has no others; give --rows oof, "
                         "or --data with a folder to be predicted")  # fmt: skip
    rows = task.read_rows(session.data, settings)
    lacking = sorted(known - set(rows["id"]))
    if lacking:
        raise InputError(f"{session.data}: lacks {lacking[0]} ({len(lacking)} of the {len(known)} test rows of "
                         f"{run / 'folds.csv'}); give --data with the run's own data, or with a folder of images "
                         "without labels, which is predicted as a whole")  # fmt: skip
    return rows[rows["id"].isin(known)].reset_index(drop=True)


def load_models(session, found, machine) -> tuple[list, list[str], dict]:
    """([(model, spec)] of all runs and folds, the views asked for, the settings the first was trained with)."""
    task, args = session.task, session.args
    loaded = [one for run in found for one in load_run(run, task, args.fold, args.use, machine.device)]
    views = check_views(args.tta, loaded[0][2]["spec"]["views"])
    return [(model, content["spec"]) for _, model, content in loaded], views, loaded[0][2]["args"]


def map_scenes(session, found, machine) -> int:
    """Maps of the scenes that no other process has in hand. Exit code 3 if a part of one could not be read."""
    models, views, trained = load_models(session, found, machine)
    settings = session.settings | {"batch_size": session.args.batch_size or min(trained["batch_size"], SCENE_BATCH)}
    names = {"run": " ".join(run.name for run in found)}
    scenes = [inside_demo(session.task, path, session.args.cache) for path in session.args.scene]
    if session.args.truth:
        names["truth"] = inside_demo(session.task, session.args.truth, session.args.cache)
    damaged = session.task.map_scenes(scenes, models, read_post(found, session.task), views,
                                      settings | names, machine, out_folder(session.args))  # fmt: skip
    return 3 if damaged and not session.args.allow_bad_images else 0


def export(session, found, machine) -> int:
    """The trained models in another form than predictions, as the task's own option asks."""
    task = session.task
    models, views, _ = load_models(session, found, machine)
    for option, write in task.exports.items():
        if session.settings[option]:
            path = write(Path(session.settings[option]), models, read_post(found, task), views, session.settings)
            print(f"{option}: {path} ({len(models)} models)")
    return 0


def write_out(session, found, sets: dict, facts: list, bad: list[str], left: dict) -> int:
    """preds/<name>/: pred.csv and spec.json, and what is handed in. Exit code 3 if a row was not read or predicted.

    left: {run: ids that no time was left for}."""
    task, args = session.task, session.args
    out, (kind, maps) = out_folder(args), SETS[args.rows]
    some = len(sets) > 1 and any(left.values())
    frame = mean_of_predicted(task, sets, left, out / maps) if some else task.mean_sets(sets, out / maps)
    path = task.write_set(out, kind, frame)
    runs.finish_set(out, facts)
    print(f"predictions: {path}")
    if args.rows == "test":
        settings = session.settings | {"data": session.data}
        final = use_post(task, frame, read_post(found, task), settings, found[0] / "post.json")
        print(f"submission: {task.write(final, session.data, out)} (validated)")
        for line in task.score_hidden(final, session.data):
            print(line)
    else:
        what = "out-of-fold score" if args.rows == "oof" else "score of what was trained on"
        print(f"{what} {task.score(task.truth_of(frame), frame)['score']:.4f} over {len(frame)} rows")
    unseen = set.intersection(*left.values())
    for row in sorted(set(bad)):
        print(f"unreadable image: {row} got {task.bad_answer}", file=sys.stderr)
    if unseen:
        print(f"time budget: {len(unseen)} rows of {len(frame)} got {task.bad_answer}", file=sys.stderr)
    return 3 if (bad or unseen) and not args.allow_bad_images else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
