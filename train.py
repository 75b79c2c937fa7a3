"""One task, one fold -> runs/<run>/fold<k>/: a model and its out-of-fold predictions.

python train.py --fold 0 --grid 3 3                       # without data anywhere: on the demo set, about a minute
python train.py --data DIR --train-folds 0 1 2 3 4        # several folds in turn
python train.py --config recipes/biomass-baseline.yaml --fold 0
torchrun --nproc-per-node 2 -- train.py --data DIR --fold 0  # two processes share each batch
"""

import argparse
import contextlib
import json
import sys
from functools import partial
from pathlib import Path

from common.datasets.folds import TEST, UNUSED, check_groups, folds_hash, join_folds, read_folds, write_folds
from common.engine import budget, runs
from common.engine import device as devices
from common.engine.bad_steps import MODES
from common.engine.batch_size import AUTO, measure_batch_size, settle_batch_size, until_it_fits
from common.engine.check import check_recipe
from common.engine.checkpoint import build, checkpoint_file
from common.engine.clock import Clock
from common.engine.experiments import LOCAL
from common.engine.fitting import fit
from common.engine.holding import ANOTHER_RUN, hold_all, is_held
from common.engine.rows import make_loader, predict_rows
from common.engine.schedule import SCHEDULES
from common.engine.tracking import Tracker, print_banner
from common.errors import InputError, run_script
from common.files import atomic_write
from common.session import begin, make_parser, pick_task, with_data_of
from common.settings import check_expected, duration, peek, positive, positive_or_auto, settings_hash
from common.tasks import TASKS

FLAG = argparse.BooleanOptionalAction


def parser_of(task):
    parser = make_parser("train", task, TASKS, __doc__.splitlines()[0])
    what = parser.add_argument_group("what to train")
    what.add_argument("--fold", help="a fold's number, or all: a full fit that nothing validates")
    what.add_argument("--train-folds", type=int, nargs="+", help="several folds in turn (default: every fold)")
    what.add_argument("--folds", type=Path, help="folds.csv; else the run's own, the data folder's, or made now")
    what.add_argument("--run", help="folder under runs/ (default: task, shape and seed)")
    what.add_argument("--seed", type=int, default=42, help="of weights, order and augmentation")
    what.add_argument("--resume", action="store_true", help="go on where the fold was stopped")
    what.add_argument("--force", action="store_true", help="start over, replacing what is there")
    what.add_argument("--check", action="store_true", help="print all settings, take one step, draw a batch, exit")
    what.add_argument("--time-budget", type=duration, metavar="TIME",
                      help="8.5h, 30m, 90s: begin no epoch that would end later; --resume goes on")  # fmt: skip
    what.add_argument("--expect", nargs="+", default=[], metavar="KEY=VALUE", help="settings that must be so")
    weights = parser.add_argument_group("weights")
    weights.add_argument("--weights", default="auto", help="of the backbone: auto, none (random) or a file or folder")
    weights.add_argument("--init", help="run or checkpoint of ours to start from: takes what fits")
    add_optimisation(parser)
    add_machine(parser)
    task.add_arguments(parser, "train")
    return parser


def add_optimisation(parser):
    optimiser = parser.add_argument_group("optimisation")
    optimiser.add_argument("--epochs", type=positive, default=30, help="in all stages together")
    optimiser.add_argument("--batch-size", type=positive_or_auto, default=8,
                           help="rows a step, of all processes together; auto: as many as fit, measured")  # fmt: skip
    optimiser.add_argument("--accumulate", type=positive, default=1, help="batches an optimizer step")
    optimiser.add_argument("--lr", type=float, default=2e-4, help="learning rate")
    optimiser.add_argument("--weight-decay", type=float, default=1e-2, help="of AdamW")
    optimiser.add_argument("--warmup-epochs", type=float, default=1.0, help="linear, before the schedule")
    optimiser.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate")
    optimiser.add_argument("--plateau-factor", type=float, default=0.5, help="plateau: factor on the learning rate")
    optimiser.add_argument("--plateau-patience", type=int, default=5, help="plateau: epochs without a better score")
    optimiser.add_argument("--grad-clip", type=float, default=1.0, help="largest norm of the gradient (0 = off)")
    optimiser.add_argument("--ema-decay", type=float, default=0.99, help="moving average of the weights (0 = off)")
    optimiser.add_argument("--patience", type=int, default=0, help="epochs without a better score (0 = never stop)")
    optimiser.add_argument("--collapse-epochs", type=int, default=3,
                           help="of predicting nothing that end a run (0 = off); those of the warm-up count once "
                           "something was found")  # fmt: skip
    optimiser.add_argument("--on-nan", choices=MODES, default="stop",
                           help="a loss, gradient or weight is not finite: end; leave the step out; or go back to "
                           "last.pt with half the learning rate, where the same rows come again")  # fmt: skip
    optimiser.add_argument("--spike-factor", type=float, default=0.0,
                           help="a loss above so many times its running median is as bad (0 = never)")  # fmt: skip
    optimiser.add_argument("--use", choices=("ema", "last", "best"), default="ema", help="weights of the predictions")


def add_machine(parser):
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device-type", choices=devices.DEVICE_TYPES, default="auto", help="where to compute")
    machine.add_argument("--amp", choices=("auto", "off", *devices.AMP_TYPES), default="auto", help="mixed precision")
    machine.add_argument("--deterministic", action=FLAG, default=False, help="refuse operations that may not repeat")
    machine.add_argument("--workers", type=int, default=2, help="loader processes (0 = in this one)")
    machine.add_argument("--cache-images", action=FLAG, default=True, help="decode and resize every image once")
    machine.add_argument(
        "--save-every", type=positive, default=1,
        help="epochs from one last.pt to the next (1 with --time-budget, or --on-nan rewind)"
    )  # fmt: skip
    machine.add_argument("--samples-every", type=int, default=10, help="epochs between drawn samples (0 = off)")
    machine.add_argument("--tensorboard", action=FLAG, default=False, help="write runs/<run>/fold<k>/tensorboard")
    machine.add_argument("--mlflow", nargs="?", const=LOCAL, metavar="URI", help=f"log to MLflow (default {LOCAL})")


def begin_training(argv):
    """(session, settings): with --resume the settings that the fold began with are the defaults."""
    task = pick_task(TASKS, argv)
    parser = parser_of(task)
    named = runs.RUNS / (peek(argv, "--run") or "")
    if "--resume" in argv and any(named.glob("fold*/args.yaml")):
        argv = with_data_of(argv, runs.run_settings(named))
    session = begin(parser, task, argv)
    name = session.args.run or task.run_name(session.settings)
    if session.args.resume:
        run = runs.RUNS / name
        if not (old := runs.settings_to_resume(run)):
            raise InputError(f"--resume: {run} has no fold yet; leave --resume out or name the --run")
        first = sorted(run.glob("fold*/args.yaml"))[0]
        session = begin(parser, task, argv, layers=[(str(first), old)], quiet=True)
    session.settings["run"] = name
    return session


def find_folds(session, rows, machine):
    """The path of the folds: named, the run's own, the data folder's, or made by the default scheme beside the run."""
    own = runs.RUNS / session.settings["run"] / "folds.csv"
    # a --check or a failed start binds nobody, a fold that another process trains does
    begun = own.is_file() and (any(own.parent.glob("fold*/*.pt")) or any(map(is_held, own.parent.glob("fold*/"))))
    source = session.args.folds or (own if begun else session.data / "folds.csv")
    devices.barrier()  # every process has looked before the first one writes
    if source.is_file() or session.args.folds:
        read_folds(source)
        if begun and folds_hash(own) != folds_hash(source):
            raise InputError(f"--folds {source}: the run {own.parent} was begun with other folds; name another --run")
        if machine.main and not begun:
            atomic_write(own, source.read_bytes())
        print(f"folds: {source}")
    else:
        task = session.task
        settings = session.settings | {"scheme": task.schemes[0]}
        fold, group = task.make_folds(rows, scheme=task.schemes[0], folds=None, seed=42, **task.fold_options(settings))
        for line in task.check_folds(rows, fold, own, settings):
            print(line)
        if machine.main:
            write_folds(own, rows, fold, group, task.target_columns(rows))
        print(f"folds: none found, made by the default scheme {task.schemes[0]} ({own})")
    devices.barrier()
    return own


def choose_folds(session, known: list[int]) -> list:
    args = session.args
    if args.fold is not None and args.train_folds:
        raise InputError("--fold and --train-folds: give one of them")
    if args.fold == "all":
        if args.use == "best":
            raise InputError("--use best: a full fit has no score to be best by; use ema or last with --fold all")
        return ["all"]
    wanted = args.train_folds if args.train_folds else known
    if args.fold is not None:
        if not args.fold.isdigit():
            raise InputError(f"--fold {args.fold}: give a number or all")
        wanted = [int(args.fold)]
    unknown = [fold for fold in wanted if fold not in known]
    if unknown:
        raise InputError(f"--fold {unknown[0]}: the folds are {', '.join(map(str, known))}")
    return wanted


def split_rows(rows, fold):
    """(training rows, validation rows or None) of a fold; a full fit has nothing to validate on, test rows and
    unused ones have no part."""
    rows = rows[~rows["fold"].isin((TEST, UNUSED))]
    if fold == "all":
        return rows.reset_index(drop=True), None
    held = rows["fold"] == fold
    return rows[~held].reset_index(drop=True), rows[held].reset_index(drop=True)


def train_fold(session, rows, fold, folds_path, machine, clock):
    """Train one fold and leave its folder complete: checkpoints, log, curves, out-of-fold predictions, ledger.

    Where the clock stops it before its last epoch, with what --resume needs."""
    task, settings = session.task, session.settings
    folder = runs.fold_folder(settings["run"], fold)
    if settings["batch_size"] == AUTO:
        settle_batch_size(settings, folder)
        devices.barrier()  # every process has looked before the first one writes
    if machine.main:
        # a run that was stopped may go on with another number, and from where --init lies now: a mount, say
        free = runs.FREE | {"collapse_epochs", "on_nan", "spike_factor"} | ({"init"} if settings["resume"] else set())
        runs.claim_fold(folder, settings, ignore=free, resume=settings["resume"], force=settings["force"])
    devices.barrier()
    if runs.is_finished(folder):
        print(f"{folder}: finished before; --force trains it again")
        return
    started = budget.now()  # a clock that is set back takes no seconds away
    train_rows, valid_rows = split_rows(rows, fold)
    spec = task.make_spec(train_rows, settings)
    devices.seed_everything(settings["seed"], settings["deterministic"])
    model = task.build_model(spec)
    said = task.load_weights(model, spec, settings)
    data = task.prepare(model, train_rows, valid_rows, spec, settings, runs.RUNS / settings["run"], machine.device)
    if settings["batch_size"] == AUTO:
        settings["batch_size"] = measure_batch_size(task, model, data.train, data.valid, data.collate, spec, settings,
                                                    machine)  # fmt: skip
        if machine.main:
            runs.keep_settings(folder, settings)
    loaders = {part: make_loader(dataset, settings, machine, shuffle=part == "train", init_worker=data.init_worker,
                                 collate=data.collate)
               for part, dataset in (("train", data.train), ("valid", data.valid)) if dataset is not None}  # fmt: skip
    header = {"spec": spec, "fold": str(fold), "args": settings, "versions": runs.versions(), "git": runs.git_state()}
    header |= {"folds_hash": folds_hash(folds_path), "external": data.external}
    print_banner(header, [said, *data.said], model, machine, {"train": train_rows, "valid": valid_rows}, loaders)
    tracker = Tracker(folder, settings, task, spec, valid_rows, loaders.get("valid"), machine)
    with tracker.experiment or contextlib.nullcontext():
        history = fit(session, model, loaders, tracker, folder, header, train_rows, machine, clock)
        if clock.stopped:
            return
        data.restore()
        frame = tracker.frame  # of a closed-form head: its stored features are those that inference computes
        if valid_rows is not None and not getattr(model, "closed_form", False):
            path = checkpoint_file(folder, settings["use"])
            model = build(path, TASKS, use=settings["use"], device=machine.device)[0]
            predicted = predict_rows(task, [model], valid_rows, spec, settings, machine, views=["identity"],
                                     folder=folder / "oof")  # fmt: skip
            frame = task.make_frame(predicted, spec, valid_rows)
        finish(session, folder, fold, header, history, frame, valid_rows, tracker, started, machine, data.facts)


def finish(session, folder, fold, header, history, frame, valid_rows, tracker, started, machine, facts):
    """Out-of-fold predictions, pictures, ledger line and, with the last fold, post.json."""
    task, settings = session.task, session.settings
    score = None if frame is None else task.score(valid_rows, frame)["score"]
    if machine.main:
        if frame is not None:
            frame.insert(1, "fold", fold)
            task.write_set(folder, "oof", frame)
        tracker.close(history, frame)
        git, seconds = header["git"], round(budget.now() - started, 1)
        line = {"run": settings["run"], "fold": fold, "score": score, "git": git["sha"], "dirty": git["dirty"]}
        line |= {"settings": settings_hash(settings, runs.FREE), "folds": header["folds_hash"][:12], "seconds": seconds}
        runs.add_to_ledger(line)
        runs.finish_fold(folder, line | {"facts": facts})
        print(f"fold {fold}: score {'-' if score is None else f'{score:.4f}'} in {seconds:.0f} s -> {folder}")
    devices.barrier()


def finish_run(session, rows, known, machine):
    """When the last fold has ended: what post-processing learns from all of them, and the score over all rows."""
    task, run = session.task, runs.RUNS / session.settings["run"]
    if not machine.main or not set(map(str, known)) <= set(runs.finished_folds(run)):
        return
    frame = task.read_run(run)
    atomic_write(run / "post.json", json.dumps(task.fit_post(rows, frame), indent=1) + "\n")
    print(f"all {len(known)} folds: out-of-fold score {task.score(rows, frame)['score']:.4f} over {len(frame)} rows")


def main(argv=None):
    began, argv = budget.now(), sys.argv[1:] if argv is None else argv
    session = begin_training(argv)
    task, settings = session.task, session.settings
    check_expected(settings, settings["expect"])
    devices.set_threads()
    machine = devices.start_machine(settings["device_type"], settings["amp"])
    rows = task.read_rows(session.data, settings)
    folds_path = find_folds(session, rows, machine)
    rows = join_folds(rows, read_folds(folds_path), folds_path, dropped=task.dropped_ids(settings))
    check_groups(rows, folds_path)
    known = runs.expected_folds(rows)
    if settings["check"]:
        train_rows, _ = split_rows(rows, choose_folds(session, known)[0])
        check_recipe(task, settings, train_rows, machine, runs.RUNS / settings["run"])
        return
    clock = Clock(settings["time_budget"], began=began, machine=machine)
    folds = choose_folds(session, known)
    left = runs.unfinished_folds(settings["run"], folds, settings["force"])
    with hold_all([runs.fold_folder(settings["run"], fold) for fold in left], ANOTHER_RUN, machine):
        for fold in clock.through(folds, left):
            train = partial(train_fold, session, rows, fold, folds_path, machine, clock)
            until_it_fits(train, session, runs.fold_folder(settings["run"], fold), machine)
        if not clock.stopped:
            finish_run(session, rows, known, machine)
    devices.stop_processes()
    return clock.say_stopped(argv)


if __name__ == "__main__":
    sys.exit(run_script(main))
