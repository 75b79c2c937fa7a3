"""The table of competitions: names at once, a task when it is asked for."""

import pytest

from common.tasks import NAMES, TASKS, Tasks


def test_it_behaves_as_a_dict_of_tasks():
    assert list(TASKS) == list(NAMES) and len(TASKS) == len(NAMES) and next(iter(TASKS)) == "biomass"
    assert all(name in TASKS for name in NAMES) and "moon" not in TASKS and TASKS.get("moon") is None
    assert [task.name for task in TASKS.values()] == [task.name for _, task in TASKS.items()] == list(NAMES)
    assert all(TASKS[name] is TASKS[name] for name in NAMES)
    with pytest.raises(KeyError):
        TASKS["moon"]


def test_a_name_is_known_before_its_module_is_there():
    table = Tasks({"nowhere": None})
    assert list(table) == ["nowhere"] and "nowhere" in table
    with pytest.raises(ModuleNotFoundError, match=r"common\.tasks\.nowhere"):  # a fault of ours, not a missing library
        table["nowhere"]


def test_a_task_can_be_added_and_taken_away():
    table, own = Tasks(dict.fromkeys(NAMES)), object()
    table["moon"] = own
    assert table["moon"] is own and list(table) == [*NAMES, "moon"]
    del table["moon"]
    assert "moon" not in table and list(table) == list(NAMES)
