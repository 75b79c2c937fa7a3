"""Settings of a script: command line > --config file.yaml > task defaults > parser defaults; unknown is an error.

The scripts declare their options in plain argparse groups; this module adds what argparse lacks: the task's own
group, defaults by layer, one-line errors with the nearest name, and the resolved settings as a file.
"""

import argparse
import contextlib
import difflib
import hashlib
import json
from pathlib import Path

import yaml

from common.errors import InputError
from common.files import atomic_write
from common.text_files import read_yaml


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are InputErrors that name the nearest option."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)
        common = self.add_argument_group("common")
        common.add_argument("--config", type=Path, help="YAML file of settings; the command line wins over it")
        common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            unknown = message.removeprefix("unrecognized arguments: ").split()[0]
            message = f"unknown option {unknown}{self.nearest(unknown)}"
        raise InputError(f"{message}; --help lists the options")

    def nearest(self, unknown: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        close = difflib.get_close_matches(unknown.split("=")[0], known, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def actions(self) -> dict[str, argparse.Action]:
        return {action.dest: action for action in self._actions if action.dest not in ("help", "config", "debug")}


def positive(text: str) -> int:
    """argparse type of a count: a whole number of 1 or more."""
    if not text.strip().isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of 1 or more")
    return int(text)


def positive_or_auto(text: str) -> int | str:
    """argparse type: a whole number of 1 or more, or the word auto."""
    return text if text == "auto" else positive(text)


def duration(text: str) -> float:
    """argparse type of a time: 8.5h, 30m, 90s or a number of seconds; the answer is in seconds, more than 0."""
    factor = {"h": 3600.0, "m": 60.0, "s": 1.0}.get(text[-1:], None)
    with contextlib.suppress(ValueError):
        seconds = float(text[:-1]) * factor if factor else float(text)
        if 0 < seconds < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r}: give a time as 8.5h, 30m, 90s or a number of seconds")


def peek(argv: list[str], option: str, default=None):
    """The value of one option before the full parser exists (its last mention, as argparse has it)."""
    value = default
    for position, word in enumerate(argv):
        if word == option and position + 1 < len(argv):
            value = argv[position + 1]
        elif word.startswith(option + "="):
            value = word.split("=", 1)[1]
    return value


def read_config(path: Path, option: str = "--config") -> dict:
    """Settings of a YAML file with option names as keys, hyphens or underscores. InputError where it is not that;
    option: that gave the file."""
    if not Path(path).exists():
        raise InputError(f"{option} {path}: no such file")
    content = read_yaml(path, where=f"{option} {path}")
    if not isinstance(content, dict):
        raise InputError(f"{option} {path}: must be a list of `option: value` lines")
    settings = {str(key).replace("-", "_"): value for key, value in content.items()}
    if len(settings) < len(content):
        raise InputError(f"{option} {path}: a setting is given twice, with a hyphen and with an underscore; keep one")
    return settings


def check_value(action: argparse.Action, value, where: str):
    """A setting from a file, as argparse would have made it of words. InputError naming file and key."""
    flag = isinstance(action, (argparse.BooleanOptionalAction, argparse._StoreTrueAction))
    if value is None and (action.default is None or not flag):
        return None
    if flag:
        if not isinstance(value, bool):
            raise InputError(f"{where}: {action.dest} must be true or false, not {value!r}")
        return value
    many = action.nargs in ("*", "+") or isinstance(action.nargs, int)
    values = value if many and isinstance(value, (list, tuple)) else [value]
    if not many and isinstance(value, (list, dict)):
        raise InputError(f"{where}: {action.dest} takes one value, not {value!r}")
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise InputError(f"{where}: {action.dest} takes {action.nargs} values, not {values!r}")
    try:
        made = [item if action.type is None else action.type(str(item)) for item in values]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{where}: {action.dest}: {value!r} is not a valid value ({error})") from error
    for item in made:
        if action.choices is not None and item not in action.choices:
            raise InputError(f"{where}: {action.dest}: {item!r} is not one of {', '.join(map(str, action.choices))}")
    return made if many else made[0]


def parse_settings(parser: Parser, argv: list[str], layers: list[tuple[str, dict]]) -> argparse.Namespace:
    """Namespace of the options; `layers` are (where from, values), weakest first, all below --config and argv.

    Keys of a layer that this script does not have are ignored when the layer's name is in brackets (a task's
    defaults serve several scripts) and errors otherwise.
    """
    config = peek(argv, "--config")
    layers = [*layers, (f"--config {config}", read_config(config))] if config else layers
    actions = parser.actions()
    for where, values in layers:
        for key, value in values.items():
            if key in actions:
                parser.set_defaults(**{key: check_value(actions[key], value, where)})
            elif not where.startswith("["):
                close = difflib.get_close_matches(key, actions, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise InputError(f"{where}: unknown setting {key!r}{hint}")
    return parser.parse_args(argv)


def plain_settings(args: argparse.Namespace) -> dict:
    """The settings as YAML-able values, without those that only concern this call (config, debug)."""
    settings = {}
    for key, value in sorted(vars(args).items()):
        if key in ("config", "debug"):
            continue
        if isinstance(value, (list, tuple)):
            value = [str(item) if isinstance(item, Path) else item for item in value]
        settings[key] = str(value) if isinstance(value, Path) else value
    return settings


def write_settings(path: Path, settings: dict) -> None:
    atomic_write(path, yaml.safe_dump(dict(settings), sort_keys=True, allow_unicode=True))


def settings_hash(settings: dict, ignore: set[str]) -> str:
    """12 hex digits over the settings that change a result; `ignore` names those that do not."""
    kept = {key: value for key, value in settings.items() if key not in ignore}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def changed_settings(old: dict, new: dict, ignore: set[str]) -> list[str]:
    """`key: old -> new` for every setting that differs."""
    keys = sorted((old.keys() | new.keys()) - ignore)
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]


def is_meant(value, text: str) -> bool:
    """Whether the text says this value, as the command line would (2e-4, 3 3) or as YAML would (true, [3, 3])."""
    words = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if text in (words, str(value)):
        return True
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # YAML takes 2e-4 for a word
            return float(text) == value
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(text) == value
    return False


def check_expected(settings: dict, expected: list[str]) -> None:
    """`--expect KEY=VALUE …`: InputError naming every setting that is not as expected."""
    wrong = []
    for item in expected:
        key, _, text = item.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if key not in settings:
            close = difflib.get_close_matches(key, settings, n=1)
            raise InputError(f"--expect {item}: no such setting{f'; did you mean {close[0]}?' if close else ''}")
        if not is_meant(settings[key], text):
            wrong.append(f"{key} is {settings[key]}, not {text}")
    if wrong:
        raise InputError(f"--expect: {'; '.join(wrong)}; change the recipe or the expectation")
