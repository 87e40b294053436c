"""The tap without QEMU: fio straight on it, against nbdkit; sustained ingest; how old an unsynced write gets.

The program is the example `tap_alone` of the crate virt-cdp: the daemon's tap, recorder and journal behind one socket.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile

from . import bench
from .meter import Nbdkit, cpu_s, fio, measured, nbd, numbers
from .mirror import WORKS, options
from .report import short
from .stand import DISK

PROGRAM = os.environ.get("TAP_ALONE", str(bench.REPO / "target/debug/examples/tap_alone"))
INGEST_GIB = float(os.environ.get("BENCH_INGEST_GIB", "16"))
DEPTH_16 = ("4 KiB random, depth 16", "randwrite", 4096, 16)
ALONE_WORKS = (WORKS[0], DEPTH_16, *WORKS[1:])
AGES = ("unsynced_age_p99_ms", "unsynced_age_max_ms")
CONFIGURATIONS = {
    "null": "`nbdkit null`",
    "memory": "`nbdkit memory`",
    "file": "`nbdkit file`",
    "tmpfs": "our tap, buffered, harbor on tmpfs",
    "tap": "our tap, buffered, harbor on disk",
    "durable": "our tap, durable, harbor on disk",
}


class Tap:
    """A tap_alone with a new harbor; it ends by itself after the first client that wrote."""

    def __init__(self, stand, place, ack, gib):
        self.directory = tempfile.mkdtemp(prefix="tap.", dir=place)
        self.sock = stand.run_dir / f"{os.path.basename(self.directory)}.sock"
        words = [PROGRAM, self.sock, f"{self.directory}/harbor", "--ack", ack, "--size", gib]
        self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            bench.wait_for("tap_alone listens", 20, self.listens)
        except bench.Failure:
            self.remove()
            raise

    def listens(self):
        if self.process.poll() is not None:
            raise bench.Failure(f"it ended with {self.process.returncode}")
        return self.sock.exists()

    def measure(self, *fio_options):
        """One load, what it cost the tap up to its end (closing the journal included), and what the tap says of it."""
        before = cpu_s(self.process.pid)
        done = fio(*nbd(f"nbd+unix:///?socket={self.sock}"), *fio_options)
        said = json.loads(self.process.stdout.read() or "{}")
        _, status, spent = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        if self.process.returncode or said.get("writes", 0) < done["total_ios"]:
            raise bench.Failure(f"tap_alone: {self.process.returncode}, fio wrote {done['total_ios']}: {said}")
        kept = numbers(done)
        kept["cpu_s_per_million"] = (spent.ru_utime + spent.ru_stime - before) / done["total_ios"] * 1e6
        kept["peak_mib"] = said["peak_rss_mib"]
        kept["to_synced_s"] = said["seconds"]
        return {**kept, **{name: said[name] for name in AGES if name in said}}

    def remove(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)
        self.sock.unlink(missing_ok=True)


def tap_load(stand, place, ack, gib, *fio_options):
    stand.settle()
    tap = Tap(stand, place, ack, gib)
    try:
        return tap.measure(*fio_options)
    finally:
        tap.remove()


def needed():
    if not os.access(PROGRAM, os.X_OK):
        raise bench.Failure(f"{PROGRAM} is not built; run: make bench-capture, or set TAP_ALONE")


def run(stand):
    needed()
    found = {(work, key): [] for work in ALONE_WORKS for key in CONFIGURATIONS}
    lost = {of: 0 for of in found}
    with contextlib.ExitStack() as stack:
        copy = stand.disk("alone.raw")
        plugins = {"null": (f"size={DISK}",), "memory": (str(DISK),), "file": (f"file={copy}",)}
        nbdkits = {}
        for key, rest in plugins.items():
            nbdkits[key] = Nbdkit(stand.run_dir, f"alone-{key}", key, *rest)
            stack.callback(nbdkits[key].stop)
        places = {"tmpfs": stand.tmpfs(stack, "alone"), "tap": stand.work, "durable": stand.work}
        for turn in range(bench.ROUNDS + 1):
            for work in ALONE_WORKS:
                bench.say(f"alone: round {turn} of {bench.ROUNDS}, {work[0]}")
                for key in CONFIGURATIONS:
                    try:
                        if key in nbdkits:
                            stand.settle()
                            load = lambda: fio(*nbd(f"nbd+unix:///?socket={nbdkits[key].sock}"), *options(work))
                            done = measured(nbdkits[key].pid, load)
                        else:
                            ack = "durable" if key == "durable" else "buffered"
                            done = tap_load(stand, places[key], ack, DISK // bench.GIB, *options(work))
                    except bench.Failure as error:
                        bench.say(f"alone: round {turn}, {key}: LOST: {error}")
                        lost[work, key] += 1
                        continue
                    if turn:
                        found[work, key].append(done)
    medians = {}
    for (work, key), rounds in found.items():
        label = CONFIGURATIONS[key] + (f"; {lost[work, key]} turns LOST" if lost[work, key] else "")
        medians[work, key] = stand.report.row("alone", work[0], label, rounds, lost_turns=lost[work, key])
    if not all(found[DEPTH_16, key] for key in ("tap", "tmpfs", "memory")):
        stand.report.figure("alone", None, "rows are missing")
    else:
        ratio = {key: medians[DEPTH_16, key]["iops"] / medians[DEPTH_16, "memory"]["iops"] for key in ("tap", "tmpfs")}
        stand.report.figure("alone", ratio["tap"], f"harbor on disk; on a tmpfs: {short(ratio['tmpfs'])}")
    ages(stand.report, [one for (_, key), rounds in found.items() if key == "tap" for one in rounds], "tap alone")
    cpu = []
    for work in ALONE_WORKS:
        for key in ("tap", "tmpfs"):
            ours, other = (medians[work, which].get("cpu_s_per_million") for which in (key, "memory"))
            if ours is not None and other:
                cpu.append((ours / other, f"tap alone, {CONFIGURATIONS[key]}, {work[0]}"))
    return cpu


def ages(report, rounds, where):
    """The worst of what the loads said of their unsynced writes; a worse one of another section stays."""
    for key, name in zip(("age_p99", "age_max"), AGES):
        known = [one[name] for one in rounds if name in one]
        earlier = report.figures.get(key, {}).get("value")
        if not known and earlier is None:
            report.figure(key, None, f"{PROGRAM} does not say {name}")
        elif known and (earlier is None or max(known) > earlier):
            report.figure(key, max(known), f"worst of {len(known)} loads: {where}")


def ingest(stand):
    """1 MiB writes in sequence into a harbor on disk against fio alone on that file system, both until synced."""
    needed()
    bytes_ = int(INGEST_GIB * bench.GIB)
    gib = -(-bytes_ // bench.GIB)
    common = ("--rw=write", "--bs=1m", "--iodepth=8", f"--size={bytes_}")
    ours, reference = [], []
    for turn in range(bench.ROUNDS):
        bench.say(f"ingest: round {turn + 1} of {bench.ROUNDS}, {INGEST_GIB:g} GiB")
        done = tap_load(stand, stand.work, "buffered", gib, *common)
        done["mib_s_synced"] = bytes_ / bench.MIB / done["to_synced_s"]
        ours.append(done)
        stand.settle()
        file = stand.work / "ingest.raw"
        try:
            direct = (f"--filename={file}", "--ioengine=io_uring", "--direct=1", "--end_fsync=1")
            reference.append(numbers(fio(*direct, *common)))
        finally:
            file.unlink(missing_ok=True)
    mine = stand.report.row("ingest", f"1 MiB sequential, depth 8, {INGEST_GIB:g} GiB", "our tap, harbor on disk", ours)
    other = stand.report.row("ingest", f"1 MiB sequential, depth 8, {INGEST_GIB:g} GiB", "fio, direct", reference)
    note = f"{short(mine['mib_s_synced'])} against {short(other['mib_s'])} MiB/s"
    if INGEST_GIB < 16:
        note += f"; over {INGEST_GIB:g} GiB only"
    stand.report.figure("ingest", mine["mib_s_synced"] / other["mib_s"], note, proven=INGEST_GIB >= 16)
    ages(stand.report, ours, "ingest")
