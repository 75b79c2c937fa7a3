"""kernel.yaml: what a kernel is called, what is attached to it and the calls it makes, checked before it is sent.

Words of a call may hold {run:NAME} and {find:NAME}, which kernels/mounts.py finds in the mounts. A recipe (recipes/…)
is carried with the code: {code}, put before it here, is the folder that the code is unpacked to.
"""

import argparse
import importlib
import json
import os
import re
import shlex
from pathlib import Path

import yaml

from common.errors import InputError
from common.session import pick_task
from common.settings import duration, parse_settings, peek
from common.tasks import TASKS
from kernels.payload import ROOT, SCRIPTS

KERNELS = ROOT / "kernels"
REQUIRED = ("title", "task", "gpu", "calls")
LISTS = ("competitions", "datasets", "kernels", "packages")
KEYS = (*REQUIRED, *LISTS, "time_budget", "hand_in", "processes")
HAND_INS = ("submission.csv", "masks")
PLACEHOLDER = re.compile(r"\{(?:(?P<code>code)|(?:run|find):(?P<name>[^{}\s]+))\}")
OWNED = re.compile(r"[A-Za-z0-9_-]+/[a-z0-9][a-z0-9-]*")  # OWNER/SLUG
TITLE = range(5, 51)  # characters


def kernel_names() -> list[str]:
    return sorted(path.parent.name for path in KERNELS.glob("*/kernel.yaml"))


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def user_name(given: str | None) -> str:
    """The Kaggle user: as given, KAGGLE_USERNAME, or of kaggle.json. InputError where nobody is named."""
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or Path.home() / ".kaggle")
    path, found = folder / "kaggle.json", given or os.environ.get("KAGGLE_USERNAME")
    if not found and path.is_file():
        try:
            found = json.loads(path.read_text())["username"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: names no username; fetch it again or give --user NAME") from error
    if not found:
        raise InputError(f"--user: whose kernel? There is no KAGGLE_USERNAME and no {path}; give --user NAME")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", found):
        raise InputError(f"--user {found}: give the name as in kaggle.com/NAME")
    return found


def read_kernel(name: str, title: str | None = None) -> dict:
    """The content of kernels/<name>/kernel.yaml with every key there, under another title where one is given.
    InputError for what is unknown or lacks."""
    path = KERNELS / name / "kernel.yaml"
    if not path.is_file():
        raise InputError(f"{name}: no such kernel; there are {', '.join(kernel_names())}")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable YAML ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be `key: value` lines of {', '.join(KEYS)}")
    for key in content.keys() - set(KEYS):
        raise InputError(f"{path}: unknown key {key!r}; the keys are {', '.join(KEYS)}")
    for key in REQUIRED:
        if key not in content:
            raise InputError(f"{path}: lacks {key}")
    empty = {key: [] for key in LISTS} | dict.fromkeys(("time_budget", "hand_in", "processes"))
    return check_kernel(empty | content | ({"title": title} if title else {}), path)


def check_kernel(content: dict, path: Path) -> dict:
    """The content; InputError for values that are not what they must be."""
    for key in (*LISTS, "calls"):
        if not isinstance(content[key], list):
            raise InputError(f"{path}: {key} must be a list")
    number = content["processes"]
    wrong = {
        "title": not isinstance(content["title"], str) or len(content["title"]) not in TITLE,
        "task": content["task"] not in TASKS,
        "gpu": not isinstance(content["gpu"], bool),
        "hand_in": content["hand_in"] not in (None, *HAND_INS),
        "calls": not content["calls"],
        "processes": number is not None and (type(number) is not int or number < 1),
    }
    meant = {"title": "text of 5 to 50 characters", "task": f"one of {', '.join(TASKS)}", "gpu": "true or false",
             "hand_in": f"one of {', '.join(HAND_INS)} or absent", "calls": "a list of calls",
             "processes": "a number from 1 on, or absent: one a GPU"}  # fmt: skip
    for key in (key for key, bad in wrong.items() if bad):
        raise InputError(f"{path}: {key} must be {meant[key]}, not {content[key]!r}")
    if not re.fullmatch(r"[A-Za-z0-9 ]+", content["title"]):
        raise InputError(f"{path}: title {content['title']!r}: letters, digits and spaces make a slug")
    return content


def owned(sources: list[str], user: str, where: str) -> list[str]:
    """OWNER/SLUG of data sets or kernels with {user} filled, each once."""
    filled = [str(source).replace("{user}", user) for source in sources]
    for source in filled:
        if not OWNED.fullmatch(source):
            raise InputError(f"{where} {source}: give OWNER/SLUG, as in the address of its page")
    return list(dict.fromkeys(filled))


def bounds(packages: list[str], where: str) -> list[str]:
    """The distributions with their bounds of requirements.txt. InputError for one that is not there."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    known = {re.split(r"[<>=!~ ]", line)[0]: line.replace(" ", "") for line in lines if line}
    for package in packages:
        if package not in known:
            raise InputError(f"{where}: packages: {package} is not in requirements.txt; name it as it is there")
    return [known[package] for package in packages]


def time_budget(value, where: str) -> str | None:
    """The time of a whole kernel as text; None where there is none. InputError for what is no time."""
    if value in (None, "none"):
        return None
    try:
        duration(str(value))
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{where}: time budget {error}") from error
    return str(value)


def words_of(call, where: str) -> list[str]:
    """The words of a call that is text or a list."""
    words = shlex.split(call) if isinstance(call, str) else [str(word) for word in call or []]
    if not words or words[0] not in SCRIPTS:
        raise InputError(f"{where}: {' '.join(words) or 'empty'}: a call begins with {', '.join(SCRIPTS)}")
    return [words[0], *map(carried_word, words[1:])]


def carried_word(word: str) -> str:
    """A word that names a recipe of the checkout, as it is named there: the calls run in another folder."""
    return f"{{code}}/{word}" if word.startswith("recipes/") and (ROOT / word).is_file() else word


def add_words(call: list[str], words: list[str]) -> list[str]:
    """A call with further words; what it says itself to one of their options is taken out, placeholders with it: the
    last mention counts anyway, and a run that is not asked for need not be mounted."""
    replaced, kept, drops = {word.partition("=")[0] for word in words if word.startswith("--")}, [], False
    for word in call:
        drops = word.partition("=")[0] in replaced if word.startswith("--") else drops
        if not drops:
            kept.append(word)
    return [*kept, *map(carried_word, words)]


def main_script(calls: list[list[str]]) -> str:
    """The script that further words of the command line are for."""
    return "train.py" if any(call[0] == "train.py" for call in calls) else "infer.py"


def check_call(words: list[str], task_name: str, where: str) -> None:
    """InputError where the script would not take these words; a placeholder stands for any value."""
    filled = [PLACEHOLDER.sub(lambda found: str(ROOT) if found["code"] else found["name"], word) for word in words[1:]]
    for word in filled:
        if "{" in word or "}" in word:
            raise InputError(f"{where}: {word}: unknown placeholder; give {{run:NAME}}, {{find:NAME}} or {{code}}")
    script = importlib.import_module(words[0].removesuffix(".py"))
    of_run = words[0] in ("infer.py", "ensemble.py")  # they take the task of what they are given
    try:
        task = pick_task(TASKS, filled, task_name if of_run else None)
        if task.name != task_name:
            raise InputError(f"is of task {task.name}, the kernel of {task_name}; say --task {task_name}")
        if words[0] == "train.py" and not peek(filled, "--run"):
            raise InputError("give --run NAME: a training that was stopped is found again by it")
        without = ("batch_size", "use") if of_run else ()  # infer.py has defaults of its own
        defaults = {key: value for key, value in task.defaults.items() if key not in without}
        parse_settings(script.parser_of(task), filled, [("[task defaults]", defaults)])
    except InputError as error:
        raise InputError(f"{where}: {words[0]}: {error}") from error
