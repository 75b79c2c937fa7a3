"""The table of competitions; the first is the default. A module is imported when its task is asked for."""

from collections import UserDict
from importlib import import_module

from common.errors import InputError

NAMES = ("biomass", "glacier", "rts", "landslide")


class Tasks(UserDict):
    """name -> Task, as its module `common.tasks.<name>` says: names cost nothing, a task the libraries of it alone.

    InputError for a task whose libraries are not installed.
    """

    def __getitem__(self, name: str):
        if super().__getitem__(name) is None:
            try:
                self[name] = import_module(f"{__name__}.{name}").TASK
            except ModuleNotFoundError as error:
                if not error.name or error.name.startswith("common."):  # a fault of ours
                    raise
                raise InputError(f"--task {name}: needs {error.name}, which is not installed; pip install it (see "
                                 "requirements.txt)") from error  # fmt: skip
        return super().__getitem__(name)


TASKS = Tasks(dict.fromkeys(NAMES))
