"""Data-set folders for Kaggle: weights of runs, folds, pretrained encoders, wheels; each with dataset-metadata.json."""

import contextlib
import json
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from common.datasets.folds import read_folds
from common.engine import runs
from common.engine.checkpoint import checkpoint_file, slim_checkpoint
from common.errors import InputError
from common.files import temporary_sibling
from common.models.weights import SUFFIXES
from common.post.blend import load_blend
from common.settings import write_settings
from kernels.specs import user_name
from kernels.wheels import collect_wheels

METADATA = "dataset-metadata.json"
# The list of what is in a data set, in the data set: beside it the folder of a single run stays a folder, which an
# archive that is alone at the root does not where Kaggle unpacks it.
CONTENTS = "contents.txt"
OURS = ("kernel-metadata.json", METADATA)  # what marks a folder that we may replace
NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
LENGTH = range(6, 51)  # characters of a title
WHOLE = ("folds.csv", "post.json")  # of a run
FOLD = ("finished.json", "oof.csv")  # of a fold; infer.py learns from oof.csv what the mean of several runs needs


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `target` when the block ends well, and is gone when it does not.

    InputError where `target` holds what was not built by this.
    """
    if target.exists() and not any((target / name).is_file() for name in OURS):
        raise InputError(f"{target}: is there and was not built by this; move it away or name another --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = temporary_sibling(target)
    made.mkdir()
    try:
        yield made
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def unfinished(run: Path) -> list[str]:
    """Folds that the run's folds.csv expects and that were never finished; none for a full fit alone."""
    finished = runs.finished_folds(run)
    if finished == ["all"]:
        return []
    expected = runs.expected_folds(read_folds(run / "folds.csv"))
    return [str(fold) for fold in expected if str(fold) not in finished]


def copy_run(run: Path, target: Path, use: str | None) -> str:
    """What inference reads of a run, into the folder `target`; the name of the run's task.

    use: "ema", "last" or "best", the weights that are kept; None: those that the run was trained to be used with.
    """
    if missing := unfinished(run):
        raise InputError(f"{run}: fold {', '.join(missing)} is not finished; train.py --run {run.name} --resume")
    target.mkdir()
    for path in [*(run / name for name in WHOLE), *sorted(run.glob("backbone-*.safetensors"))]:
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    for fold in runs.finished_folds(run):
        source, kept = run / f"fold{fold}", target / f"fold{fold}"
        kept.mkdir()
        settings = runs.read_settings(source)
        chosen = use or settings["use"]
        # where the data lay is of this machine: there the mounts are looked at
        write_settings(kept / "args.yaml", settings | {"use": chosen, "data": None})
        slim_checkpoint(checkpoint_file(source, chosen), checkpoint_file(kept, chosen), chosen)
        for name in FOLD:
            if (source / name).is_file():
                shutil.copyfile(source / name, kept / name)
    if not (target / "post.json").is_file():
        print(f"{run}: no post.json, what is predicted will be uncalibrated; ensemble.py --runs {run.name} --fit-post")
    return settings["task"]


def fill_weights(folder: Path, paths: list[Path], args: Namespace) -> None:
    """A folder per run, blends beside them. InputError where a blend has a member that is not among the runs."""
    found = [runs.find_run(path) for path in paths]
    if not found:
        raise InputError("--dataset weights: name the run folders")
    if len({run.name for run in found}) < len(found):
        raise InputError("--dataset weights: two runs have the same name; rename one, they are found by it")
    for run in found:
        copy_run(run, folder / run.name, args.use)
    for path in args.blend or []:
        lacking = sorted(set(load_blend(path)["members"]) - {run.name for run in found})
        if lacking:
            raise InputError(f"--blend {path}: its member {lacking[0]} is not among the runs; name that run too")
        if (folder / path.name).exists():
            raise InputError(f"--blend {path}: a second file {path.name}; rename one")
        shutil.copyfile(path, folder / path.name)


def fill_folds(folder: Path, paths: list[Path], args: Namespace) -> None:
    if len(paths) != 1:
        raise InputError("--dataset folds: name one folds.csv")
    read_folds(paths[0])
    shutil.copyfile(paths[0], folder / "folds.csv")


def fill_encoder(folder: Path, paths: list[Path], args: Namespace) -> None:
    """Files of pretrained weights under their own names, by which --weights auto finds them."""
    if not paths:
        raise InputError("--dataset encoder: name the files of pretrained weights")
    for path in paths:
        if not path.is_file() or path.suffix not in SUFFIXES:
            raise InputError(f"--dataset encoder {path}: give a file that ends in {', '.join(SUFFIXES)}")
        if (folder / path.name).exists():
            raise InputError(f"--dataset encoder {path}: a second file {path.name}; rename one after its model")
        shutil.copyfile(path, folder / path.name)


def fill_wheels(folder: Path, paths: list[Path], args: Namespace) -> None:
    if paths:
        raise InputError("--dataset wheels: takes no path; --image FILE says what the image has")
    collect_wheels(folder, args.python, args.image)


DATA_SETS = {"weights": fill_weights, "folds": fill_folds, "encoder": fill_encoder, "wheels": fill_wheels}
NAMES = {"encoder": "landfold-encoders"}  # beside landfold-<kind>
OPTIONS = {"weights": ("blend", "use"), "wheels": ("python", "image")}


def default_name(kind: str, paths: list[Path]) -> str:
    """landfold-<kind>, of weights landfold-<task>-weights."""
    if kind != "weights" or not paths:
        return NAMES.get(kind, f"landfold-{kind}")
    return f"landfold-{runs.run_settings(runs.find_run(paths[0]))['task']}-weights"


def check_options(kind: str, args: Namespace) -> None:
    if kind not in DATA_SETS:
        raise InputError(f"--dataset {kind}: unknown kind; choose from {', '.join(DATA_SETS)}")
    for other, options in OPTIONS.items():
        for option in options:
            if other != kind and getattr(args, option):
                raise InputError(f"--{option}: is of --dataset {other}, not of {kind}")


def write_data_set(args: Namespace) -> int:
    """<out>/<name>/ for `kaggle datasets create -p … -r zip`; says what it holds and how large that is."""
    kind, *rest = args.dataset
    check_options(kind, args)
    paths, user = [Path(path) for path in rest], user_name(args.user)
    name = args.name or default_name(kind, paths)
    if not NAME.fullmatch(name) or len(name) not in LENGTH:
        raise InputError(f"--name {name}: give 6 to 50 small letters, digits and hyphens")
    title = name.replace("-", " ").capitalize()
    metadata = {"title": title, "id": f"{user}/{name}", "licenses": [{"name": args.licence or "other"}]}
    with replaced_folder(args.out / name) as folder:
        DATA_SETS[kind](folder, paths, args)
        held = [(path.relative_to(folder), path.stat().st_size) for path in sorted(folder.rglob("*")) if path.is_file()]
        lines = [f"{size:>16,}  {path}" for path, size in held]
        (folder / CONTENTS).write_text("\n".join(lines) + "\n")
        (folder / METADATA).write_text(json.dumps(metadata, indent=1) + "\n")
    print("\n".join(lines))
    print(f"{args.out / name}: {len(held)} files, {sum(size for _, size in held):,} bytes, {user}/{name}")
    return 0
