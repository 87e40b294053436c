"""Rows, figures and what is made of them, for people and for programs."""

import json
import os
import statistics

from . import bench

# Fewer rounds or shorter loads show that all works; they prove no figure.
FULL = {"BENCH_ROUNDS": 5, "BENCH_SECONDS": 3}
SHORT = ", ".join(f"{name}={os.environ[name]}" for name, full in FULL.items()
                  if float(os.environ.get(name) or full) < full)

# Key, what it is, what is to be reached in words, and the same for the program.
FIGURES = (
    ("null", "guest IOPS, virt-cdp with its harbor on a tmpfs / mirror to `nbdkit null`: worst row", ">=", 0.95),
    ("file", "guest IOPS, virt-cdp / mirror to `nbdkit file`, both on the source's disk: worst row", ">=", 1.0),
    ("cpu", "CPU per write of our process / `nbdkit memory`'s: worst row", "<=", 1.0),
    ("alone", "tap alone, 4 KiB random, depth 16, IOPS / `nbdkit memory`'s", ">=", 1.0),
    ("ingest", "sustained 1 MiB ingest / fio's direct sequential write on that disk", ">=", 0.85),
    ("age_p99", "age of the oldest acknowledged but unsynced write under load, p99, ms", "<=", 250),
    ("age_max", "age of the oldest acknowledged but unsynced write under load, maximum, ms", "<=", 1000),
    ("stall", "longest single guest write under any fault, ms, and no guest error", "<=", 1300),
    ("resync", "bytes read by a resync after 30 s without us / bytes changed, at 64 KiB", "<=", 1.1),
    ("recovery", "recovery of a 10 GiB journal after a crash, s, and idempotent", "<=", 3.0),
)
HEAD = (
    "Work", "Configuration", "Writes/s", "MiB/s", "p99, us", "Longest, ms", "CPU s per million", "Peak MiB", "Rounds"
)


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def short(value):
    return "-" if value is None else bench.figure(value)


class Report:
    def __init__(self, figures=FIGURES):
        self.wanted = figures
        self.rows = []
        self.figures = {}
        self.failures = []

    def figure(self, key, value, note, proven=True):
        """`proven`: what the figure asks beside its number (no guest error, the same again, the whole size)."""
        _, name, sense, bound = next(figure for figure in self.wanted if figure[0] == key)
        met = False
        if value is not None and SHORT:
            proven, note = False, f"{note}; NOT PROVEN: {SHORT}"
        if value is not None:
            met = bool(proven and (value >= bound if sense == ">=" else value <= bound))
        self.figures[key] = {"name": name, "value": value, "target": f"{sense} {bound}", "met": met, "note": note}
        bench.say(f"FIGURE {name}: {short(value)} ({sense} {bound}; {'met' if met else 'not met'}) {note}")

    def row(self, section, work, configuration, rounds, **more):
        """A row of medians; `rounds` has a dictionary of numbers for each round."""
        names = sorted({name for one in rounds for name in one})
        medians = {name: median([one.get(name) for one in rounds]) for name in names}
        row = {"section": section, "work": work, "configuration": configuration, "median": medians, "rounds": rounds}
        self.rows.append({**row, **more})
        shown = ", ".join(f"{name} {short(medians[name])}" for name in names)
        bench.say(f"{section} | {work} | {configuration} | {shown}")
        return medians

    def failure(self, section, error, keys):
        """A section that came to no end: its figures were not measured."""
        text = str(error).replace("\n", " ").replace("|", "/")
        self.failures.append(f"{section}: {text}")
        bench.say(f"{section}: FAILED: {text}")
        for key in keys:
            if key not in self.figures:
                self.figure(key, None, text)

    def complete(self):
        """Lists the figures whose sections were not asked for."""
        for key, *_ in self.wanted:
            if key not in self.figures:
                self.figure(key, None, "not run")

    def ordered(self):
        return [self.figures[key] for key, *_ in self.wanted]

    def document(self, facts):
        return json.dumps({"run": facts, "figures": self.ordered(), "rows": self.rows}, indent=1) + "\n"

    def text(self):
        lines = [("Figure", "Reached", "To reach", "Met", "Note"), ("---",) * 5]
        for one in self.ordered():
            lines.append((one["name"], short(one["value"]), one["target"], "yes" if one["met"] else "no", one["note"]))
        text = markdown(lines)
        for section in ("mirror", "alone"):
            rows = [row for row in self.rows if row["section"] == section]
            if rows:
                text += "\n" + markdown([HEAD, ("---",) * len(HEAD), *map(load_cells, rows)])
        others = [row for row in self.rows if row["section"] not in ("mirror", "alone")]
        if others:
            lines = [("Section", "Measured", "How", "Median (lowest .. highest)"), ("---",) * 4]
            text += "\n" + markdown(lines + [plain_cells(row) for row in others])
        return text + "".join(f"\nFAILED: {failure}\n" for failure in self.failures)


def markdown(lines):
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load_cells(row):
    rounds, middle = row["rounds"], row["median"]
    writes = bench.cell([one["iops"] for one in rounds], "").replace("  ", " ").strip()
    names = ("mib_s", "p99_us", "longest_ms", "cpu_s_per_million", "peak_mib")
    return (row["work"], row["configuration"], writes, *(short(middle.get(name)) for name in names), str(len(rounds)))


def plain_cells(row):
    shown = []
    for name, value in row["median"].items():
        values = [one[name] for one in row["rounds"] if one.get(name) is not None]
        if value is not None:
            shown.append(f"{name} {short(value)} ({short(min(values))} .. {short(max(values))})")
    return (row["section"], row["work"], row["configuration"], "; ".join(shown))
