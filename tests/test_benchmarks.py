"""The page of `make bench`: every benchmark's table with its ratios, and why one did not run or failed."""

import re
from pathlib import Path

import pytest

from benchmarks import run_all
from benchmarks.side_by_side import Beside, print_table

ROOT = Path(__file__).resolve().parent.parent
PRINTS = """
import sys
sys.path.insert(0, ROOT)
from benchmarks.side_by_side import Beside, print_table
def main():
    print("7 rows")
    print_table([Beside("sorting", "numpy", 2.0, 5.0)])
"""
FAKES = {
    "good": f'"""Ours beside theirs."""{PRINTS}main()',
    "lacking": '"""Needs what is not here."""\ndef main():\n    import no_such_library.deep\nmain()',
    "missed": '"""Is too slow."""\ndef main():\n    assert 1 > 2, "slower than it should be"\nmain()',
    "endless": '"""Does not end."""\nimport time\ndef main():\n    time.sleep(60)\nmain()',
    "helper": '"""Is no benchmark: it has nothing to be called by."""\nraise SystemExit("must not run")',
}


@pytest.fixture
def fakes(tmp_path) -> Path:
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name, source in FAKES.items():
        (folder / f"{name}.py").write_text(source.replace("ROOT", repr(str(ROOT))))
    return folder


def test_a_page_of_what_ran_what_lacked_a_library_and_what_failed(fakes, capsys):
    assert run_all.main(["--limit", "3"], folder=fakes) == 1
    page = (fakes / "RESULTS.md").read_text()
    parts = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert set(parts) == {"good", "lacking", "missed", "endless"}
    assert "| sorting | numpy | 2 s | 5 s | 2.5 |" in parts["good"] and "```\n7 rows\n```" in parts["good"]
    assert "Ours beside theirs." in parts["good"] and "Failed" not in parts["good"]
    assert "Did not run: no_such_library is not installed." in parts["lacking"]
    assert "**Failed**: AssertionError: slower than it should be" in parts["missed"]
    assert "**Failed**: stopped: took longer than 3 s" in parts["endless"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("4 benchmarks, 2 failed (endless, missed), 1 not run (lacking)")


def test_the_page_says_machine_and_versions(fakes):
    import numpy as np

    assert run_all.main(["--only", "good", "lacking", "--out", str(fakes / "p" / "page.md")], folder=fakes) == 0
    head = (fakes / "p" / "page.md").read_text().split("## ")[0]
    assert f"numpy {np.__version__}" in head and re.search(r"\d+ cores, \S.*, \d+ GiB of memory", head)
    assert re.search(r"Written by `make bench` on 20\d\d-\d\d-\d\d \(commit [0-9a-f]{7}", head)


def test_a_name_that_is_none(fakes):
    with pytest.raises(run_all.InputError, match="--only other: .*choose of endless, good, lacking, missed"):
        run_all.main(["--only", "other"], folder=fakes)


def test_every_file_is_a_benchmark_that_reports_in_the_one_form():
    found = run_all.benchmarks_in(ROOT / "benchmarks")
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert files - set(found) == {"run_all", "side_by_side"} and len(found) >= 10
    for name, path in found.items():
        assert "print_table(" in path.read_text(), name
        assert run_all.title_of(path)


def test_a_table_leaves_out_what_no_row_fills(capsys):
    print_table([Beside("a | b", "x", 0.5, 1000.0, "ms", cpu=(2.0, 5.0)), Beside("alone", "", 3.0, unit="GB")])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines == ["| what | beside | ours | theirs | ratio | of CPU time |", "|---|---|--:|--:|--:|--:|",
                     "| a / b | x | 0.5 ms | 1,000 ms | 2,000 | 2.5 |", "| alone |  | 3 GB |  |  |  |"]  # fmt: skip
