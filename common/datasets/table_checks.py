"""Checks of the table of labels: sums that must hold, columns that must be zero, impossible and unusual values.

A finding is a dict {"id", "what", "value"}: to be read by a person. Nothing is changed and nothing is dropped.
"""

import numpy as np

LISTED = 5


def check_table(rows, *, outputs, sums=None, zero_where=(), ranges=None, tolerance=0.05, fence=2.0) -> list[dict]:
    """All findings of a table of rows (column `id` and those named here), in the order of the checks below.

    sums: {whole: (parts, ...)} that must add up within `tolerance` (units of the outputs); zero_where: (column, value,
    output) triples, output must be 0 in rows of that value; ranges: {column: (lowest or None, highest or None)};
    fence: see `unusual`. Columns that a table lacks are not checked, except outputs.
    """
    findings = missing(rows, outputs) + negative(rows, outputs)
    for whole, parts in (sums or {}).items():
        findings += broken_sum(rows, whole, parts, tolerance)
    for column, value, output in zero_where:
        findings += not_zero(rows, column, value, output)
    for column, (lowest, highest) in (ranges or {}).items():
        findings += out_of_range(rows, column, lowest, highest)
    for name in outputs:
        findings += unusual(rows, name, fence)
    return findings


def missing(rows, columns):
    return [_finding(i, f"{name} is missing", None) for name in columns for i in rows["id"][rows[name].isna()]]


def negative(rows, columns):
    return [f for name in columns for f in _list(rows, rows[name] < 0, f"{name} is negative", rows[name])]


def broken_sum(rows, whole, parts, tolerance):
    """Rows where whole - sum of parts is further from 0 than `tolerance`; the value is that difference."""
    difference = rows[whole] - rows[list(parts)].sum(axis=1, skipna=False)
    return _list(rows, difference.abs() > tolerance, f"{whole} - ({' + '.join(parts)}) is not 0", difference)


def not_zero(rows, column, value, output):
    if column not in rows:
        return []
    wrong = (rows[column] == value) & (rows[output].abs() > 0)
    return _list(rows, wrong, f"{output} is not 0 although {column} is {value}", rows[output])


def out_of_range(rows, column, lowest, highest):
    if column not in rows:
        return []
    low, high = -np.inf if lowest is None else lowest, np.inf if highest is None else highest
    wrong = (rows[column] < low) | (rows[column] > high)
    return _list(rows, wrong, f"{column} is not between {low:g} and {high:g}", rows[column])


def unusual(rows, name, fence=2.0):
    """Rows whose square root of `name` lies more than `fence` quartile distances outside the quartiles (Tukey).

    The root takes the skew out of masses and counts; zeros are kept out of the quartiles, since they are a state of
    their own, and are never unusual. Fewer than 8 numbers, or no spread: no finding.
    """
    root = np.sqrt(rows[name].clip(lower=0))
    some = root[root > 0]
    if len(some) < 8:
        return []
    first, third = some.quantile(0.25), some.quantile(0.75)
    if third <= first:
        return []
    reach = fence * (third - first)
    wrong = (root > 0) & ((root < first - reach) | (root > third + reach))
    return _list(rows, wrong, f"{name} is unusual", rows[name])


def finding_lines(findings, listed=LISTED) -> list[str]:
    """Findings as text: a line per kind with its count, then at most `listed` rows of it, the largest values first."""
    if not findings:
        return ["table checks: nothing found"]
    kinds = {}
    for finding in findings:
        kinds.setdefault(finding["what"], []).append(finding)
    lines = []
    for what, found in kinds.items():
        lines.append(f"{what}: {len(found)} rows")
        worst = sorted(found, key=lambda f: -abs(f["value"] or 0.0))
        lines += [f"  {f['id']}" + ("" if f["value"] is None else f" {f['value']:.4g}") for f in worst[:listed]]
        if len(found) > listed:
            lines.append(f"  and {len(found) - listed} more")
    return lines


def _list(rows, wrong, what, values):
    return [_finding(i, what, v) for i, v in zip(rows["id"][wrong], values[wrong], strict=True)]


def _finding(row_id, what, value):
    return {"id": str(row_id), "what": what, "value": None if value is None else float(value)}
