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

tune = pytest.importorskip("tune")  # test_recipes has put recipes/ on the path
COMMAND = re.compile(r"(?:python )?((?:recipes/)?[a-z_]+\.py) (.*)")


def commands() -> list[tuple[str, list[str], str]]:
    """(task of the section, words, as it is written) of every command in a block and of every whole one in a line."""
    found = []
    for section in re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.M):
        named = re.search(r"--task ([a-z]+)", section)
        blocks = re.findall(r"^```\n(.*?)^```", section, flags=re.M | re.S)
        lines = [line for block in blocks for line in block.splitlines() if line.startswith("python ")]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", section, flags=re.M | re.S))
        for line in lines:
            command = COMMAND.fullmatch(line)
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
    if command[0] != "recipes/tune.py":
        understood(command, task)
        return
    own = list(takewhile(lambda word: word != "--", command[1:]))
    given = pick_task(TASKS, own, task)
    settings = tune.parser_of(given).parse_args(own)
    assert settings.choices.is_relative_to(RECIPES) and settings.choices.is_file()
    tune.given_settings(train.parser_of(given), command[len(own) + 2 :])


@pytest.mark.parametrize(("task", "words", "line"), COMMANDS, ids=[line for *_, line in COMMANDS])
def test_every_command_is_understood(task, words, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(words, task)


def test_the_commands_of_every_task_are_seen():
    """Else a change of the README's form would let all of them go unread."""
    blocks = [line for _, _, line in COMMANDS if line.startswith("python ")]
    text = (ROOT / "README.md").read_text()
    assert len(blocks) == len(re.findall(r"(?:^|`)python [^\n`]+\.py ", text, flags=re.M)) > 20
    assert {"biomass", "glacier", "rts"} <= {task for task, _, _ in COMMANDS}


@pytest.mark.parametrize("words", [["train.py", "--gird", "3", "3"], ["infer.py", "--threshold", ".5"],
                                   ["recipes/tune.py", "--trials", "3", "--", "--lerning-rate", "1"]])  # fmt: skip
def test_a_command_of_nothing_is_refused(words):
    with pytest.raises((InputError, SystemExit)):
        check(words, "biomass")
