"""How long a start takes that has to recover a long journal after a crash, and whether a second one finds the same.

virtcdpd is killed under load and the storage daemon ended, so nothing but the recovery changes the journal. Its pages
are dropped from the cache before each start. A start is over when `info` answers for the machine.
"""

import hashlib
import os
import pathlib
import time

from . import bench
from .report import short
from .stand import DISK

FIGURES = ("recovery",)
JOURNAL_GIB = float(os.environ.get("BENCH_JOURNAL_GIB", "10"))
WRITE_S = 1800  # at most, to fill it
TAIL_FILES = 3


def files_of(harbor):
    return sorted(path for path in harbor.rglob("*") if path.is_file())


def drop_pages(harbor):
    for path in files_of(harbor):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def state_of(daemon, name, harbor):
    """What a recovery must not change the second time: points, and the journal's files, the last ones byte for byte."""
    points = [(point["id"], point["time"]) for point in daemon.cli("point-list", name)["points"]]
    journal = [path for path in files_of(harbor) if "journal" in path.relative_to(harbor).parts[0]]
    sizes = {str(path.relative_to(harbor)): path.stat().st_size for path in journal}
    tail = [hashlib.blake2b(path.read_bytes()).hexdigest() for path in journal[-TAIL_FILES:]]
    return points, sizes, tail


def fill(stand, daemon, image):
    """Writes until the journal is long enough, and kills virtcdpd in the midst of it.

    Returns the machine's name, its `info`, and the ids of the points it had shown."""
    with stand.storage_daemon(image) as storage:
        name = f"bench-recovery-{os.getpid()}"
        daemon.cli("protect", name, "--qmp", storage.qmp, "--node", "disk0")
        daemon.wait_protected(name)
        with storage.served(mirrored=True):
            words = ("--rw=randwrite", "--bssplit=4k/80:64k/20", "--iodepth=32", "--norandommap", f"--size={DISK}",
                     "--time_based", f"--runtime={WRITE_S}")
            with stand.load(storage, *words):
                while (info := daemon.info(name))["journal_bytes"] < JOURNAL_GIB * bench.GIB:
                    if info["state"] != "protected":
                        raise bench.Failure(f"the machine is {info['state']} before its journal was long enough")
                    time.sleep(0.2)
                promised = daemon.cli("point-list", name)["points"]
                daemon.kill()
    return name, info, {point["id"] for point in promised}


def run(stand):
    image = stand.disk("recovery.raw")
    with stand.daemon("recovery") as daemon:
        bench.say(f"recovery: filling a journal of {JOURNAL_GIB:g} GiB")
        name, info, promised = fill(stand, daemon, image)
        harbor = pathlib.Path(info["harbor"])
        rounds, states = [], []
        for number in range(bench.ROUNDS + 1):
            drop_pages(harbor)
            began = time.monotonic()
            daemon.start()
            daemon.info(name)
            rounds.append({"start_s": time.monotonic() - began})
            states.append(state_of(daemon, name, harbor))
            bench.say(f"recovery: start {number + 1} of {bench.ROUNDS + 1}: {short(rounds[-1]['start_s'])} s")
            daemon.kill()
        daemon.start()
        daemon.forget(name)
    missing = promised - {point for point, _ in states[0][0]}
    same = all(state == states[0] for state in states[1:])
    what = f"{info['journal_bytes'] / bench.GIB:.1f} GiB, {info['writes']:,} writes, {len(states[0][0])} points"
    stand.report.row("recovery", what, "start until `info` answers, pages not cached", rounds)
    note = f"worst of {len(rounds)} starts; first {short(rounds[0]['start_s'])} s; {what}"
    note += "; each start found the same" if same else "; NOT the same each time: " + difference(states)
    whole = same and not missing and JOURNAL_GIB >= 10
    if missing:
        note += f"; {len(missing)} POINTS ARE MISSING"
    if JOURNAL_GIB < 10:
        note += f"; {JOURNAL_GIB:g} GiB were asked for only"
    stand.report.figure("recovery", max(one["start_s"] for one in rounds), note, proven=whole)


def difference(states):
    for number, state in enumerate(states[1:], 2):
        for what, first, now in zip(("points", "files of the journal", "bytes of its end"), states[0], state):
            if first != now:
                return f"{what} at start {number}"
    return ""
