import numpy as np
import pandas as pd
import pytest
from fold_tables import OUTPUTS, real_rows

from common.datasets.table_checks import check_table, finding_lines, unusual

SUMS = {"gdm": ("green", "clover"), "total": ("gdm", "dead")}
ZERO = [("state", "WA", "dead")]


def sound(n=40):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"id": [f"ID{i}" for i in range(n)], "state": np.where(np.arange(n) % 4, "Vic", "WA")})
    rows["green"], rows["clover"] = rng.uniform(20, 40, n), rng.uniform(2, 9, n)
    rows["dead"] = np.where(rows["state"] == "WA", 0, rng.uniform(5, 15, n))
    rows["gdm"] = rows["green"] + rows["clover"]
    return rows.assign(total=rows["gdm"] + rows["dead"], ndvi=rng.uniform(0.2, 0.9, n))


def check(rows):
    found = check_table(rows, outputs=OUTPUTS, sums=SUMS, zero_where=ZERO, ranges={"ndvi": (0, 1), "height": (0, None)})
    return [(f["id"], f["what"], f["value"]) for f in found]


def test_a_sound_table_has_no_findings():
    assert check(sound()) == []
    assert finding_lines([]) == ["table checks: nothing found"]


@pytest.mark.parametrize("off", [0.31, -0.31])
def test_broken_sum_is_found_with_its_size(off):
    rows = sound()
    rows.loc[7, "total"] += off
    (found,) = check(rows)
    assert found[:2] == ("ID7", "total - (gdm + dead) is not 0") and found[2] == pytest.approx(off)
    rows.loc[7, "total"] -= off - 0.04
    assert check(rows) == []


def test_dead_matter_where_there_must_be_none():
    rows = sound()
    rows.loc[4, ["dead", "total"]] += 9.0
    assert check(rows) == [("ID4", "dead is not 0 although state is WA", 9.0)]


def test_negative_missing_and_out_of_range():
    rows = sound().assign(height=-1.0)
    rows.loc[1, ["dead", "total"]] = -2.0, rows.loc[1, "gdm"] - 2.0
    rows.loc[2, "green"] = np.nan
    rows.loc[3, "ndvi"] = 1.5
    found = check(rows)
    assert ("ID1", "dead is negative", -2.0) in found and ("ID2", "green is missing", None) in found
    assert ("ID3", "ndvi is not between 0 and 1", 1.5) in found
    assert sum(what == "height is not between 0 and inf" for _, what, _ in found) == len(rows)
    assert len(found) == 3 + len(rows)


def test_unusual_values_by_the_fences_of_tukey():
    rows = pd.DataFrame({"id": [f"ID{i}" for i in range(102)], "mass": [*np.arange(100.0) ** 2, 0.0, 1e6]})
    first, third = np.percentile([*range(1, 100), 1000], [25, 75])
    assert 1000 > third + 10 * (third - first)
    assert [f["id"] for f in unusual(rows, "mass", 10.0)] == ["ID101"]
    assert unusual(rows, "mass", 20.0) == []
    assert unusual(rows.iloc[95:], "mass") == [] and unusual(rows.assign(mass=3.0), "mass") == []


def test_lines_name_the_worst_and_count_the_rest():
    found = [{"id": f"ID{i}", "what": "dead is negative", "value": -float(i)} for i in range(8)]
    lines = finding_lines(found, listed=2)
    assert lines == ["dead is negative: 8 rows", "  ID7 -7", "  ID6 -6", "  and 6 more"]


@pytest.mark.data
def test_real_table_has_one_broken_sum_and_few_unusual_rows(biomass_data):
    found = check_table(real_rows(biomass_data), outputs=OUTPUTS, sums=SUMS, zero_where=ZERO)
    (off,) = [f for f in found if "is not 0" in f["what"]]
    assert off["id"] == "ID2014192906" and off["value"] == pytest.approx(-0.3088, abs=1e-4)
    assert {f["what"] for f in found if f is not off} <= {f"{name} is unusual" for name in OUTPUTS} and len(found) < 12
