"""Until a takeover runs, against a start of the same machine on a disk of its own."""

import time

from capture.report import short

from . import bench

# The machines: what they are called, bytes of the disk, seconds of writes after the base point.
MACHINES = (("1 GiB", bench.GIB, 0), ("1 GiB, longer journal", bench.GIB, 20), ("1 TiB", 1 << 40, 0))


def start(name):
    """Milliseconds of a start."""
    began = time.monotonic()
    bench.virsh("start", name)
    return (time.monotonic() - began) * 1000


def run(stand):
    all_of_it = bench.Bench(stand.stack)
    plain, ready, started = {}, {}, {}
    guests = {}
    for number, (label, size, seconds) in enumerate(MACHINES):
        bench.say(f"takeover: {label}")
        guest = guests[label] = all_of_it.small(f"t{number}", size, stand.stack)
        all_of_it.daemon.cli("protect", guest.name)
        guest.sh("dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct 2>/dev/null")
        if seconds:
            guest.wload(seconds)
        all_of_it.daemon.cli("point-create", guest.name)
        plain[label] = own(stand, all_of_it, f"{guest.name}-own", size)
        ready[label], started[label] = [], []
    for _ in range(bench.ROUNDS):
        for label in guests:
            with all_of_it.taken_over(guests[label].name) as (_, ready_ms):
                ready[label].append(ready_ms)
            started[label].append(start(plain[label]))
            bench.virsh("destroy", plain[label])
    worst, notes = 0, []
    for label in guests:
        rounds = [{"takeover_ms": ours, "start_ms": theirs} for ours, theirs in zip(ready[label], started[label])]
        middle = stand.report.row("takeover", label, "until it runs", rounds)
        worst = max(worst, (middle["takeover_ms"] - middle["start_ms"]) / 1000)
        notes.append(f"{label}: {short(middle['takeover_ms'])} against {short(middle['start_ms'])} ms")
    stand.report.figure("takeover", worst, "; ".join(notes))


def own(stand, all_of_it, name, size):
    """The same machine, on a raw disk of its own, defined and not started."""
    image = all_of_it.images / f"{name}.raw"
    bench.run("qemu-img", "create", "-q", "-f", "raw", image, size)
    guest = bench.Guest(name)
    stand.stack.callback(guest.remove)
    guest.start("small", [f"{image}:raw"])
    bench.virsh("destroy", name)
    return name
