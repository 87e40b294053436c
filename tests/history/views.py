"""How long a view takes to open, and how fast it is read."""

import os
import time

from capture.meter import forget_peak, peak_mib
from capture.report import short
from capture.stand import SECONDS

from . import alone, bench, read as read_from, served

RECORDS = int(os.environ.get("BENCH_RECORDS", "10000")) * 1000
READ_GIB = 5
EXTENTS = RECORDS // 10
LAYERS = 8
RANDOM = ("--rw=randread", "--bs=4k", "--iodepth=32", "--norandommap")
SEQUENTIAL = ("--rw=read", "--bs=1m", "--iodepth=8")
# Nothing is built or thinned out while it is measured.
CALM = '[tidy]\ninterval = "1h"\nbase_interval = "7d"\nbase_journal = "1TiB"\nscrub_interval = "0s"\n'


def open_(stand):
    bench.say(f"open: making a harbor with {RECORDS:,} records")
    work = stand.work / "open"
    harbors = work / "state/harbors"
    harbors.mkdir(parents=True)
    made = alone("make", harbors / "view-alone", RECORDS - EXTENTS, EXTENTS, READ_GIB)
    bench.say(f"open: made in {made['seconds']:.0f} s")
    run_dir = stand.run_dir / "open"
    run_dir.mkdir(mode=0o711)
    daemon = bench.Daemon(work, run_dir, work, CALM, "virtcdpd-open.log")
    rounds = []
    try:
        name = daemon.cli("list")["machines"][0]["name"]
        for _ in range(bench.ROUNDS + 1):
            pid = daemon.process.pid
            forget_peak(pid)
            before = peak_mib(pid)
            began = time.monotonic()
            view = daemon.cli("view-open", name, "--at", "latest")
            seconds = time.monotonic() - began
            rounds.append({"open_ms": seconds * 1000, "mib": peak_mib(pid) - before})
            daemon.cli("view-close", view["id"])
    finally:
        daemon.stop()
    what = f"{RECORDS:,} records, {EXTENTS:,} since the base point"
    middle = stand.report.row("open", what, "`virt-cdp view-open`, the program's start with it", rounds)
    whole = RECORDS >= 10_000_000
    note = f"worst {short(max(one['open_ms'] for one in rounds))} ms; {what}"
    stand.report.figure("open_ms", middle["open_ms"], note, proven=whole)
    stand.report.figure("open_mib", max(one["mib"] for one in rounds), "the most of all rounds", proven=whole)


def loads(uri, seconds):
    size = f"--size={READ_GIB * bench.GIB}"
    timed = ("--time_based", f"--runtime={round(seconds * 1000)}ms")
    return {"random": read_from(uri, *RANDOM, size, *timed)["iops"],
            "sequential": read_from(uri, *SEQUENTIAL, size, *timed)["mib_s"]}


def whole(uri):
    """Reads everything once, from front to back."""
    return read_from(uri, *SEQUENTIAL, f"--size={READ_GIB * bench.GIB}")["mib_s"]


def turns(configurations, seconds, rounds):
    """Each in turn; the first round, which fills the page cache and checks what a view reads first, is not counted."""
    found = {name: [] for name in configurations}
    for number in range(rounds + 1):
        for name, uri in configurations.items():
            done = loads(uri, seconds)
            if number:
                found[name].append(done)
    return found


def read(stand):
    flat, deep = stand.work / "flat", stand.work / "deep"
    bench.say(f"read: making a harbor of {READ_GIB} GiB")
    alone("layers", flat, 1, 0, READ_GIB)
    exported = stand.work / "export.qcow2"
    alone("export", flat, exported)
    sock = stand.run_dir / "flat.sock"
    first = {"view": [], "nbd": []}
    with bench.qemu_nbd(stand.run_dir / "nbd.sock", "-r", "-f", "qcow2", exported):
        nbd_uri = f"nbd+unix:///?socket={stand.run_dir / 'nbd.sock'}"
        for _ in range(max(1, bench.ROUNDS * 3 // 5)):
            with served(flat, sock) as uri:
                first["view"].append({"mib_s": whole(uri)})
            first["nbd"].append({"mib_s": whole(nbd_uri)})
        with served(flat, sock) as uri:
            found = turns({"view": uri, "nbd": nbd_uri}, SECONDS, bench.ROUNDS)
    exported.unlink()
    rows = stand.report.row
    rows("read", "1 MiB, everything once", "view just opened: each cluster is hashed", first["view"])
    rows("read", "1 MiB, everything once", "`qemu-nbd` on an equal qcow2", first["nbd"])
    ours = rows("read", "4 KiB random at depth 32, 1/s; 1 MiB sequential, MiB/s", "view, one layer", found["view"])
    theirs = rows("read", "the same", "`qemu-nbd` on an equal qcow2", found["nbd"])
    for key in ("random", "sequential"):
        stand.report.figure(key, ours[key] / theirs[key], f"{short(ours[key])} against {short(theirs[key])}")

    bench.say(f"read: making a harbor of {LAYERS} layers and {EXTENTS:,} records")
    alone("layers", deep, LAYERS, EXTENTS, READ_GIB)
    with served(flat, sock) as uri, served(deep, stand.run_dir / "deep.sock") as deep_uri:
        # The journal was written past the page cache, so nothing of it is there yet.
        whole(uri)
        whole(deep_uri)
        found = turns({"one": uri, "deep": deep_uri}, SECONDS, bench.ROUNDS)
    one = rows("read", "the same", "view, one layer, again", found["one"])
    many = rows("read", "the same", f"view, {LAYERS} layers and {EXTENTS:,} extents", found["deep"])
    ratios = {key: many[key] / one[key] for key in ("random", "sequential")}
    note = "; ".join(f"{key} {short(ratio)}" for key, ratio in ratios.items())
    stand.report.figure("deep", min(ratios.values()), note, proven=EXTENTS >= 1_000_000)
