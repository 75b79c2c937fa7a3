"""Prediction sets -> the blend that is handed in and report.html: fitted and honest scores; with one set, the scorer.

python ensemble.py --runs runs/biomass-2x2-s42 runs/biomass-3x3-s42 --save-blend blend.json   # fitted on out-of-fold
python ensemble.py --preds preds/2x2 preds/3x3 --blend blend.json --out out/                  # applied to test
python ensemble.py --oof a.csv b.csv --truth train.csv --group date_state                     # strangers' predictions
python ensemble.py --runs A B --compare                                                       # side by side
python ensemble.py --runs A --fit-post                                                        # post.json again
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from common.datasets.folds import folds_hash, join_folds, read_folds
from common.engine import runs
from common.engine.holding import ANOTHER_OUT, hold
from common.engine.learnt import REMEDY, use_post
from common.engine.tracking import read_log
from common.errors import InputError, run_script
from common.files import atomic_write
from common.metrics.gates import check_gates, say_gates
from common.outputs.compare_report import write_compare_report
from common.outputs.compare_tables import mean_name, recipes_of
from common.post.blend import load_blend, save_blend
from common.session import begin, check_trained, demo_facts, make_parser, pick_task, with_data_of
from common.settings import peek
from common.tasks import TASKS
from common.text_files import content_of

FLAG = argparse.BooleanOptionalAction


def parser_of(task):
    parser = make_parser("ensemble", task, TASKS, __doc__.splitlines()[0])
    sets = parser.add_argument_group("prediction sets (one of)").add_mutually_exclusive_group(required=True)
    sets.add_argument("--runs", nargs="+", type=Path, help="run folders: their out-of-fold predictions")
    sets.add_argument("--oof", nargs="+", type=Path, help="files of out-of-fold predictions, with --truth")
    sets.add_argument("--preds", nargs="+", type=Path, help="folders of test predictions (infer.py --out)")
    truth = parser.add_argument_group("truth")
    truth.add_argument("--truth", type=Path, help="table of targets for --oof")
    truth.add_argument("--group", help="column whose values are left out one at a time (default: the folds' groups)")
    blend = parser.add_argument_group("blend")
    blend.add_argument("--kind", choices=task.blends, default=task.blends[0], help="how members are weighted")
    blend.add_argument("--seed", type=int, default=42, help="of the bags of the greedy selection")
    blend.add_argument("--save-blend", type=Path, metavar="FILE", help="write weights and post-processing as JSON")
    blend.add_argument("--blend", type=Path, metavar="FILE", help="apply a saved blend to --preds (default: the mean)")
    what = parser.add_argument_group("what to do")
    what.add_argument("--compare", action="store_true", help="runs side by side, no blend")
    what.add_argument("--fit-post", action="store_true", help="write post.json of the runs again")
    what.add_argument("--baselines", action=FLAG, default=True, help="score simple models beside (--runs)")
    if task.gates:
        what.add_argument("--gates", choices=list(task.gates), help="scores that must be reached; exit code 1 if not")
    what.add_argument("--report", action=FLAG, default=True, help="write report.html")
    what.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    task.add_arguments(parser, "ensemble")
    return parser


def rows_of_runs(session, found: list[Path]):
    """Rows of the data with group and fold; all runs must have been trained on the same folds."""
    hashes = {run.name: folds_hash(run / "folds.csv") for run in found}
    if len(set(hashes.values())) > 1:
        raise InputError(f"--runs: trained on different folds ({', '.join(hashes)}); blend runs of the same folds.csv")
    settings = runs.run_settings(found[0])
    rows = session.task.read_rows(session.data, settings)
    path = found[0] / "folds.csv"
    return join_folds(rows, read_folds(path), path, dropped=session.task.dropped_ids(settings))


def whole_runs(task, found: list[Path]) -> dict:
    """{name: out-of-fold set} of runs whose every fold is finished."""
    sets = {}
    for run in found:
        expected = {str(fold) for fold in runs.expected_folds(read_folds(run / "folds.csv"))}
        missing = sorted(expected - set(runs.finished_folds(run)))
        if missing:
            raise InputError(
                f"{run}: fold {', '.join(missing)} is not finished; train.py --run {run.name} --train-folds …"
            )
        sets[run.name] = task.read_run(run)
    return sets


def member_of(task, run: Path, rows, frame) -> dict:
    """What the report shows of a run: scores of best and last, logs, seconds."""
    logs = {folder.name.removeprefix("fold"): read_log(folder) for folder in sorted(run.glob("fold*"))}
    finished = {fold: runs.read_finished(run / f"fold{fold}") for fold in runs.finished_folds(run)}
    grid = runs.run_settings(run).get("grid")
    return {
        "name": run.name,
        "oof": frame,
        "logs": logs,
        "seconds": sum(line["seconds"] for line in finished.values()),
        "facts": {fold: line["facts"] for fold, line in finished.items() if line.get("facts")},
        "grid": tuple(grid) if grid else None,
    }


def with_groups(rows, column: str | None, default: str = "group"):
    """Rows whose `group` is the column to leave out by. InputError where there is no such column."""
    column = column or default
    if column not in rows:
        raise InputError(f"--group {column}: no such column; there are {', '.join(rows.columns)}")
    return rows.assign(group=rows[column].astype(str))


def name_sets(task, paths: list[Path]) -> dict:
    """{file name without suffix: set}; a shorter name where the stems are alike is the user's to give."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        raise InputError("--oof: two files have the same name; rename one, the blend tells members by it")
    return {name: task.read_set(path) for name, path in zip(names, paths, strict=True)}


def apply_saved(session) -> int:
    """Blend test predictions, post-process, write what is handed in."""
    task, args = session.task, session.args
    sets = {}
    for folder in args.preds:
        made = runs.read_makers(folder)
        name = made[0].get("run", folder.name) if len(made) == 1 else folder.name
        if name in sets:
            raise InputError(f"--preds {folder}: a second set of run {name}; give each run once")
        sets[name] = task.read_set(folder)
    blend, folder = load_blend(args.blend) if args.blend else None, args.out / "prob"
    if blend is None:
        frame, post = task.mean_sets(sets, folder), None
        print(f"mean of {len(sets)} sets, uncalibrated: give --blend for fitted weights and post-processing")
    else:
        with content_of(args.blend, REMEDY):
            frame, post = task.blend(blend, sets, folder), blend["post"]
            if "honest" in blend:  # a task's own blend may not know
                honest, fitted = blend["honest"], blend["fitted"]
                print(f"blend of {len(sets)} sets: honest out-of-fold score {honest:.4f} (fitted {fitted:.4f})")
    task.write_set(args.out, "pred", frame)
    final = use_post(task, frame, post, session.settings | {"data": session.data}, args.blend)
    print(f"submission: {task.write(final, session.data, args.out)} (validated)")
    for line in task.score_hidden(final, session.data):
        print(line)
    return 0


def print_scores(judgement: dict, beside: dict) -> None:
    """The honest score with all that stands beside it, and the tables."""
    scores, interval = judgement["scores"], judgement["interval"]
    width = max(map(len, judgement["members"]))
    weights = dict(zip(judgement["blend"]["members"], judgement["blend"]["weights"], strict=True))
    for name, score in judgement["members"].items():
        weight = weights[name]
        shown = f"{weight:.3f}" if isinstance(weight, float) else " ".join(f"{value:.2f}" for value in weight)
        print(f"  {name:{width}}  score {score:.4f}  weight {shown}")
    for name, score in judgement["blend"]["dropped"].items():
        print(f"  {name}: no better than a constant ({score:.4f}), weight 0")
    print(judgement["gains"].round(4).to_string(index=False))
    for table in judgement["tables"].values():
        print(table.round(4).to_string(index=False))
    if interval:
        print(
            f"blend - {interval['against']}: {interval['difference']:+.4f}, 95 % interval "
            f"[{interval['low95']:+.4f}, {interval['high95']:+.4f}] (paired bootstrap over {interval['groups']} groups)"
        )
    for name, score in beside.items():
        print(f"{name:10s} {score:.4f}")
    print(f"{'fitted':10s} {scores['fitted']:.4f}")
    print(f"{'HONEST':10s} {scores['honest']:.4f}   (every group left out of what was fitted)")
    if "reachable" in beside:
        below = max((name for name in beside if name != "reachable"), key=beside.get)
        share = (scores["honest"] - beside[below]) / (beside["reachable"] - beside[below])
        print(f"{share:.0%} of the way from {below} to the best reachable")


def fit_posts(session, sets: dict, rows) -> int:
    for name, frame in sets.items():
        path = runs.find_run(Path(name)) / "post.json"
        atomic_write(path, json.dumps(session.task.fit_post(rows, frame, session.settings), indent=1) + "\n")
        print(f"post-processing: {path}")
    return 0


def compare_runs(session, sets: dict, rows, found: list[Path]) -> int:
    """Runs side by side, and the mean of those that differ in their seed alone: a table, compare.csv, compare.html."""
    task, args = session.task, session.args
    recipes = recipes_of({run.name: runs.run_settings(run) for run in found}, runs.FREE)
    means = {mean_name(one): {run: sets[run] for run in one.runs.values()} for one in recipes if len(one.runs) > 1}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, members) in enumerate(means.items()):
            try:
                sets = sets | {name: task.mean_sets(members, Path(folder) / str(number))}
            except InputError as error:  # runs that kept counts alone
                print(f"no line for {name}: {error}")
        table = task.compare(rows, sets, session.settings)
    print(table.round(4).to_string(index=False))
    print(f"comparison: {atomic_write(args.out / 'compare.csv', table.to_csv(index=False))}")
    if args.report:
        title = f"{task.name}: {len(recipes)} recipes side by side"
        page = write_compare_report(args.out / "compare.html", title=title, scores=table, recipes=recipes,
                                    published=task.published)  # fmt: skip
        print(f"report: {page.resolve()}")
    return 0


def judge_sets(session, sets: dict, rows, members: list[dict], baselines: tuple[dict, dict] = ({}, {})) -> int:
    """Blend, scores, report, and the blend file where one is asked for."""
    beside, shown = baselines
    task, args = session.task, session.args
    judgement = task.judge(rows, sets, session.settings)
    print_scores(judgement, beside)
    task.write_set(args.out, "oof", judgement["honest"])
    if args.save_blend:
        print(f"blend: {save_blend(args.save_blend, judgement['blend'])}")
    if args.report:
        path = task.report(args.out / "report.html", judgement | shown, members, beside, session.settings)
        print(f"report: {path.resolve()}")
    return pass_gates(task, judgement, session.settings.get("gates"))


def check_gated(settings: dict) -> None:
    """InputError for gates where nothing is judged by them: a call that asks for them must be able to fail."""
    for job in ("preds", "compare", "fit_post"):
        if settings.get("gates") and settings[job]:
            raise InputError(f"--gates {settings['gates']}: does nothing with --{job.replace('_', '-')}; give it in a "
                             "call that judges --runs or --oof")  # fmt: skip


def pass_gates(task, judgement: dict, level: str | None) -> int:
    """0 where no gates were asked for or all are passed, else 1; prints the table and the verdict."""
    if level is None:
        return 0
    table = check_gates(judgement["metrics"], task.gates[level])
    for line in say_gates(table, level):
        print(line)
    return 0 if table["passed"].all() else 1


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    first = peek(argv, "--runs")
    known = runs.run_settings(runs.find_run(Path(first))) if first else {}
    if preds := peek(argv, "--preds"):
        known = {"task": runs.read_makers(Path(preds))[0].get("task")}
    task = pick_task(TASKS, argv, known.get("task"))
    argv = with_data_of(argv, known)
    split = "train" if first else "test" if peek(argv, "--preds") else None
    session = begin(parser_of(task), task, argv, split=split)
    check_gated(session.settings)
    task.check_jobs(session.settings)
    with contextlib.nullcontext() if session.args.fit_post else hold(session.args.out, ANOTHER_OUT):
        return do_asked(session)


def do_asked(session) -> int:
    """What the options ask for; what is written, but for post.json, into --out."""
    task, args = session.task, session.args
    if args.preds:
        return apply_saved(session)
    if args.oof:
        if args.truth is None:
            raise InputError("--oof: needs the truth of these predictions, --truth train.csv")
        rows = with_groups(task.read_truth(args.truth), args.group, task.group_column)
        sets = name_sets(task, args.oof)
        return judge_sets(session, sets, rows, [{"name": n, "oof": frame} for n, frame in sets.items()])
    found = [runs.find_run(run) for run in args.runs]
    for run in found:
        check_trained(task, settings := runs.run_settings(run), settings.path)
    sets = whole_runs(task, found)
    rows = with_groups(rows_of_runs(session, found), args.group)
    for option, job in task.jobs.items():
        if session.settings[option]:
            return job(rows, sets, found, session.settings)
    if args.fit_post:
        return fit_posts(session, sets, rows)
    if args.compare:
        return compare_runs(session, sets, rows, found)
    trained = runs.run_settings(found[0]) | {"cache": session.settings["cache"]}
    baselines = task.baselines(rows, demo_facts(session.source), trained) if args.baselines else ({}, {})
    members = [member_of(task, run, rows, sets[run.name]) for run in found]
    return judge_sets(session, sets, rows, members, baselines)


if __name__ == "__main__":
    sys.exit(run_script(main))
