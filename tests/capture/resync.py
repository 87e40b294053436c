"""What a resync reads after a time without us, against what the guest changed meanwhile.

The changes are counted by QEMU itself, in a bitmap of the bench's own with a granularity of 64 KiB.
"""

import os
import time

from . import bench
from .meter import parse
from .report import short

FIGURES = ("resync",)
AWAY_S = float(os.environ.get("BENCH_AWAY_SECONDS", "30"))
RATE = 100  # writes a second: about 170 MiB of areas of 64 KiB in 30 s, of a disk of 1 GiB
BITMAP = "bench-changed"
GRANULARITY = 65536


def changed(storage):
    """Bytes that were written since the bitmap is there, in whole areas."""
    nodes = storage.execute("query-named-block-nodes", flat=True)
    node = next(node for node in nodes if node["node-name"] == "disk0")
    return next(bitmap["count"] for bitmap in node["dirty-bitmaps"] if bitmap.get("name") == BITMAP)


def turn(stand, daemon, image):
    with stand.storage_daemon(image) as storage, stand.protected(daemon, storage, "resync") as name:
        with storage.served(mirrored=True):
            daemon.kill()
            storage.execute("block-dirty-bitmap-add", node="disk0", name=BITMAP, granularity=GRANULARITY)
            words = ("--rw=randwrite", "--bs=4k", "--iodepth=4", "--norandommap", f"--size={os.path.getsize(image)}",
                     "--time_based", f"--runtime={round(AWAY_S * 1000)}ms", f"--rate_iops={RATE}")
            with stand.load(storage, *words) as ended:
                written = parse(ended(AWAY_S + 60))["write"]["total_ios"]
        count = changed(storage)
        began = time.monotonic()
        daemon.start()
        daemon.wait_protected(name)
        seconds = time.monotonic() - began
        done = daemon.info(name).get("last_resync")
        if not done:
            raise bench.Failure("`info` does not say what the last resync read")
        return {"writes": written, "changed_mib": count / bench.MIB, "read_mib": done["read_bytes"] / bench.MIB,
                "ratio": done["read_bytes"] / count, "start_to_protected_s": seconds}


def run(stand):
    image = stand.disk("resync.raw")
    with stand.daemon("resync") as daemon:
        rounds = []
        for number in range(bench.ROUNDS):
            bench.say(f"resync: round {number + 1} of {bench.ROUNDS}, {AWAY_S:g} s without us")
            try:
                rounds.append(turn(stand, daemon, image))
            finally:
                # A failure may have come between its end and its start; the machine has yet to be deleted.
                if daemon.process.poll() is not None:
                    daemon.start()
    middle = stand.report.row("resync", f"4 KiB random, {RATE} a second", "virtcdpd SIGKILLed, started later", rounds)
    note = f"{short(middle['read_mib'])} MiB read, {short(middle['changed_mib'])} MiB changed"
    if AWAY_S < 30:
        note += f"; after {AWAY_S:g} s only"
    stand.report.figure("resync", max(one["ratio"] for one in rounds), note, proven=AWAY_S >= 30)
