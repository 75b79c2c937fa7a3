"""The README's commands: each of them is one that its script takes."""

import re
import shlex
from itertools import takewhile

import pytest
from test_recipes import RECIPES, ROOT, understood

import train
from common.errors import InputError
from common.session import pick_task
from common.tasks import TASKS
from kernels import build, specs
from recipes import tune

COMMAND = re.compile(r"(?:python |bash )?((?:recipes/|kernels/)?[a-z_]+\.(?:py|sh)) (.*)")


def commands() -> list[tuple[str, list[str], str]]:
    """(task of the section, words, as it is written) of every command in a block and of every whole one in a line."""
    found = []
    for section in re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.M):
        named = re.search(r"--task ([a-z]+)", section)
        blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines() if line.startswith(("python ", "bash "))]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", section, flags=re.M | re.S))
        for line in lines:
            command = COMMAND.fullmatch(line)
            if command and command[1].endswith(".sh") and not command[1].startswith("kernels/push"):
                continue  # a recipe: test_recipes.py runs what it calls
            if command and command[2] != "…":  # an option alone, a command that says "and so on"
                words = [command[1], *shlex.split(command[2], comments=True)]
                if words[0] == "infer.py" and "--runs" not in words:  # a table says what is added to the run above
                    assert not line.startswith("python "), line
                    words += ["--runs", "above"]
                found.append((named[1] if named else next(iter(TASKS)), words, line.partition("  #")[0]))
    return found


COMMANDS = commands()


def check(command: list[str], task: str) -> None:
    """InputError or the parser's exit where the script would not take the words."""
    own = list(takewhile(lambda word: word != "--", command[1:]))
    if command[0].startswith("kernels/"):
        check_build(own, command[len(own) + 2 :])
        return
    if command[0] != "recipes/tune.py":
        understood(command, task)
        return
    given = pick_task(TASKS, own, task)
    settings = tune.parser_of(given).parse_args(own)
    assert settings.choices.is_relative_to(RECIPES) and settings.choices.is_file()
    tune.given_settings(train.parser_of(given), command[len(own) + 2 :])


def check_build(own: list[str], words: list[str]) -> None:
    """The same of build.py, and of push.sh, which is given a data set's folder or the words of build.py."""
    args = build.parser_of().parse_args(own)
    for name in args.kernels:
        state = {"commit": "0", "dirty": False}
        build.runtime_kernel(name, specs.read_kernel(name, args.title), state, words, args.time_budget)
    assert args.kernels or args.dataset or args.wheels


@pytest.mark.parametrize(("task", "words", "line"), COMMANDS, ids=[line for *_, line in COMMANDS])
def test_every_command_is_understood(task, words, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(words, task)


def test_the_commands_of_every_task_are_seen():
    """Else a change of the README's form would let all of them go unread."""
    blocks = [line for _, _, line in COMMANDS if line.startswith(("python ", "bash "))]
    text = (ROOT / "README.md").read_text()
    assert (
        len(blocks)
        == len(re.findall(r"(?:^|`)(?:python (?!tests/)[^\n`]+\.py|bash kernels/push\.sh) ", text, flags=re.M))
        > 20
    )
    assert {"biomass", "glacier", "rts"} <= {task for task, _, _ in COMMANDS}


def test_the_programs_that_break_things_take_what_is_shown():
    pages = [(ROOT / name).read_text() for name in ("README.md", "tests/faults/README.md")]
    shown = [line for page in pages for line in re.findall(r"(?:^|`)python (tests/[^\n`#]+)", page, flags=re.M)]
    assert len(shown) >= 6
    for file, *words in map(shlex.split, shown):
        text = (ROOT / file).read_text()
        assert all(f'"{word}"' in text for word in words if word.startswith("--")), (file, words)


@pytest.mark.parametrize("words", [["train.py", "--gird", "3", "3"], ["infer.py", "--threshold", ".5"],
                                   ["recipes/tune.py", "--trials", "3", "--", "--lerning-rate", "1"],
                                   ["kernels/build.py", "biomass-infer", "--", "--tat", "hflip"],
                                   ["kernels/build.py", "biomas-infer"]])  # fmt: skip
def test_a_command_of_nothing_is_refused(words):
    with pytest.raises((InputError, SystemExit)):
        check(words, "biomass")
