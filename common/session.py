"""The start of every script: which task, which data, which settings."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.datasets.cache import cached_folder
from common.datasets.locate import Source, find_data, on_kaggle
from common.errors import InputError
from common.settings import Parser, check_value, parse_settings, peek, plain_settings, read_config
from common.tasks.base import Task
from common.text_files import read_json

CACHE = Path("cache")


@dataclass(frozen=True)
class Session:
    task: Task
    source: Source
    args: argparse.Namespace
    settings: dict  # the resolved options as plain values

    @property
    def data(self) -> Path:
        return self.source.path


def pick_task(tasks: dict[str, Task], argv: list[str], default: str | None = None) -> Task:
    """The task of --task on the command line or in --config, else the default, else the first of the table."""
    config = peek(argv, "--config")
    name = peek(argv, "--task", (read_config(Path(config)).get("task") if config else None) or default)
    name = name or next(iter(tasks))
    if not isinstance(name, str) or name not in tasks:
        raise InputError(f"--task {name}: unknown; choose from {', '.join(tasks)}")
    return tasks[name]


def make_parser(script: str, task: Task, tasks: dict[str, Task], description: str) -> Parser:
    """A parser with the options that every script has."""
    parser = Parser(prog=f"{script}.py", description=description)
    where = parser.add_argument_group("task and data")
    where.add_argument("--task", choices=list(tasks), default=task.name, help="the competition")
    where.add_argument("--data", type=Path, help="its folder, demo or demo/PART; else a mount, data/<slug>/, demo")
    where.add_argument("--cache", type=Path, default=CACHE, help="folder for what is computed once")
    return parser


def is_demo(data: Path) -> bool:
    """Whether --data means the built-in set (demo) or a part of it (demo/…) and no folder of that name."""
    return data == Path("demo") or (data.parts[:1] == ("demo",) and not data.exists())


def demo_folder(task: Task, cache: Path) -> Path:
    return cached_folder(cache, f"demo-{task.name}", {"version": task.demo_version}, task.make_demo)


def inside_demo(task: Task, path: Path, cache: Path) -> Path:
    """The path, or what demo/… means in the built-in set."""
    return demo_folder(task, cache).joinpath(*path.parts[1:]) if is_demo(path) else path


def demo_facts(source: Source) -> dict:
    """What the demo set knows of itself (best reachable score, hidden truth); empty for real data."""
    path = source.path / "demo.json"
    return read_json(path, remedy="draw the demo set again") if path.is_file() else {}


def open_source(task: Task, data: Path | None, split: str | None, cache: Path) -> Source:
    """The data folder of a call: none where it reads no data, the demo set where `data` is demo, else find_data's."""
    if split is None:
        return Source(Path("."), "none")
    if data is not None and is_demo(data):
        inside = inside_demo(task, data, cache)
        if not inside.is_dir():
            raise InputError(f"--data {data}: the demo set has no such part; give --data demo")
        return Source(inside, "demo")
    return find_data(task.slug, task.markers[split], data, lambda: demo_folder(task, cache))


def check_trained(task: Task, settings: dict, where) -> None:
    """InputError where settings that a fold was trained with, as the file `where` has them, are none of this task."""
    made_for = settings.get("task", task.name)
    if isinstance(made_for, str) and made_for != task.name:
        raise InputError(f"{where}: made for task {made_for}; give --task {made_for}")
    parser = make_parser("train", task, {task.name: task}, "")
    task.add_arguments(parser, "train")
    for name, action in parser.actions().items():
        if name in settings:
            check_value(action, settings[name], str(where))


def with_data_of(argv: list[str], known: dict) -> list[str]:
    """The words with --data of the run (its settings `known`) where none is given: never other data in silence.

    InputError where that folder is gone; on Kaggle the mounts are looked at instead.
    """
    if peek(argv, "--data") is not None or not known.get("data"):
        return argv
    if not isinstance(known["data"], str):
        raise InputError(f"the run says it was trained on {known['data']!r}, which is no folder; name its data with "
                         "--data")  # fmt: skip
    if is_demo(Path(known["data"])) or Path(known["data"]).is_dir():
        return [*argv, "--data", known["data"]]
    if on_kaggle():
        return argv
    raise InputError(f"the run was trained on {known['data']}, which is not there; name its data with --data")


def begin(
    parser: Parser, task: Task, argv: list[str], *, split: str | None = "train", layers=(), quiet=False, without=()
) -> Session:
    """Find the data, say so, and resolve the settings; a demo set brings the task's small settings with it.

    split: "train" or "test", the files that must be there; None for a call that reads no data. without: options whose
    default is the script's own, whatever the task trains with.
    """
    if "-h" in argv or "--help" in argv:
        parser.parse_args(argv)  # prints and exits before a demo set is drawn for nobody
    config = peek(argv, "--config")
    written = read_config(Path(config)) if config else {}
    for name in ("data", "cache"):
        if not isinstance(written.get(name) or "", str):
            raise InputError(f"--config {config}: {name} takes one path, not {written[name]!r}")
    data = peek(argv, "--data", written.get("data"))
    cache = Path(peek(argv, "--cache", written.get("cache") or CACHE))
    source = open_source(task, Path(data) if data else None, split, cache)
    defaults = [("[task defaults]", task.defaults)]
    if source.kind == "demo" or (source.path / "demo.json").is_file():
        defaults.append(("[demo defaults]", task.demo_defaults))
    defaults = [(name, {key: value for key, value in layer.items() if key not in without}) for name, layer in defaults]
    args = parse_settings(parser, argv, [*defaults, *layers])
    if not quiet and split is not None:
        why = "as asked," if data else "no data given or found, so this is"
        note = f"DEMO DATA: {why} the built-in demo set ({source.path})"
        print(note if source.kind == "demo" else f"data: {source.path} ({source.kind})")
    return Session(task, source, args, plain_settings(args))
