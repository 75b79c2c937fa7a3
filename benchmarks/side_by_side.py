"""The one form in which a benchmark reports: a Markdown table of what is ours beside what one would use instead."""

from dataclasses import dataclass

COLUMNS = ("what", "beside", "ours", "theirs", "ratio", "of CPU time", "note")


@dataclass(frozen=True)
class Beside:
    """One comparison, both sides measured in one run; for all of them less is better.

    what: was measured; beside: the library or way that one would take otherwise; ours, theirs: values in `unit` (theirs
    None: a figure that stands alone, without a ratio); cpu: the same two in processor time, where it was taken; ratio,
    cpu_ratio: where they are not theirs / ours of these values (medians of ratios, say); note: what a reader must know.
    """

    what: str
    beside: str
    ours: float
    theirs: float | None = None
    unit: str = "s"
    cpu: tuple[float, float] | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    note: str = ""

    def cells(self) -> list[str]:
        def over(pair):
            return pair[1] / pair[0] if pair and None not in pair and pair[0] else None

        ratio = over((self.ours, self.theirs)) if self.ratio is None else self.ratio
        cpu = over(self.cpu) if self.cpu_ratio is None else self.cpu_ratio
        values = [number(value, self.unit) for value in (self.ours, self.theirs)]
        return [self.what, self.beside, *values, number(ratio), number(cpu), self.note]


def number(value: float | None, unit: str = "") -> str:
    """Three digits of it, empty for none."""
    if value is None:
        return ""
    digits = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def print_table(rows: list[Beside]) -> None:
    """The comparisons as a Markdown table with a heading; a column that no row fills is left out."""
    lines = [[cell.replace("|", "/") for cell in row.cells()] for row in rows]
    used = [k for k in range(len(COLUMNS)) if any(line[k] for line in lines)]
    print("\n| " + " | ".join(COLUMNS[k] for k in used) + " |")
    print("|" + "|".join("--:" if COLUMNS[k] in COLUMNS[2:6] else "---" for k in used) + "|")
    for line in lines:
        print("| " + " | ".join(line[k] for k in used) + " |")
    print(flush=True)
