"""The longest write of a guest while each of our parts is taken away under it.

fio keeps 16 writes in flight on the mirror's filter. The harbor lies on an ext4 of its own in a file, which can be
filled and frozen. A turn counts only if its fault is seen in the gaps (or, for an upgrade, in a daemon that started
anew).
"""

import contextlib
import os
import signal
import subprocess
import time

from . import bench
from .meter import parse
from .stand import gaps, unmount

FIGURES = ("stall",)
DISK = 256 * bench.MIB
HARBORS = 2560 * bench.MIB
LOAD_S = float(os.environ.get("BENCH_FAULT_SECONDS", "7"))
AT_S = 1.5
HELD_S = max(1.6, LOAD_S - 3)  # how long a part is held up: longer than the bypass deadline, or nobody feels it
HEALED_S = 120
LEFT = 24 * bench.MIB  # of the harbor's file system, when it is filled


class Fault:
    """What is done to virtcdpd under load, and how it is undone."""

    def __init__(self, daemon, harbors):
        self.daemon, self.harbors = daemon, harbors
        self.filler = harbors / "filler"

    def hurt_for(self, seconds, undo):
        time.sleep(seconds)
        undo()

    def killed(self):
        self.daemon.kill()
        self.daemon.start()

    def stopped(self):
        self.daemon.process.send_signal(signal.SIGSTOP)
        self.hurt_for(HELD_S, lambda: self.daemon.process.send_signal(signal.SIGCONT))

    def upgraded(self):
        started = self.daemon.cli("status")["started"]
        self.daemon.process.send_signal(signal.SIGHUP)
        bench.wait_for("the daemon serves anew", 30, lambda: self.daemon.cli("status")["started"] != started)

    def full(self):
        space = os.statvfs(self.harbors)
        descriptor = os.open(self.filler, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            with contextlib.suppress(OSError):  # Full already will do.
                os.posix_fallocate(descriptor, 0, max(1, space.f_bavail * space.f_frsize - LEFT))
        finally:
            os.close(descriptor)
        self.hurt_for(HELD_S, lambda: None)

    def hung(self):
        bench.run("fsfreeze", "-f", self.harbors)
        self.hurt_for(HELD_S, self.thaw)

    def thaw(self):
        bench.run("fsfreeze", "-u", self.harbors, check=False)

    def heal(self):
        self.thaw()
        self.filler.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.daemon.process.send_signal(signal.SIGCONT)


# What is done, in words; the block size of the load (large where a disk must fill or a buffer run over); a gap follows.
FAULTS = {
    "killed": ("virtcdpd SIGKILLed, started again", 4096, True),
    "stopped": ("virtcdpd SIGSTOPped", 4096, True),
    "upgraded": ("virtcdpd upgraded (SIGHUP)", 4096, False),
    "full": ("the harbor's disk full", 65536, True),
    "hung": ("the harbor's disk hung (frozen)", 65536, True),
}


def file_system(stand, stack):
    """An ext4 in a file, as the harbors' directory of a state directory."""
    state = stand.work / "faults"
    harbors, image = state / "state/harbors", stand.work / "faults.ext4"
    harbors.mkdir(parents=True)
    with open(image, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, HARBORS)
    stack.callback(image.unlink)
    bench.run("mkfs.ext4", "-q", "-F", image)
    bench.run("mount", "-o", "loop", image, harbors)
    stack.callback(unmount, harbors)
    (harbors / "lost+found").rmdir()
    return state, harbors


def turn(stand, daemon, fault, image, what):
    """One load with one fault. Returns its numbers; `error` is what the guest saw, if anything."""
    _, block, gap = FAULTS[what]
    with contextlib.ExitStack() as stack:
        stack.callback(fault.heal)
        storage = stack.enter_context(stand.storage_daemon(image))
        name = stack.enter_context(stand.protected(daemon, storage, "fault"))
        before = gaps(daemon, name)
        with storage.served(mirrored=True):
            words = ("--rw=randwrite", f"--bs={block}", "--iodepth=16", "--norandommap", f"--size={DISK}",
                     "--time_based", f"--runtime={round(LOAD_S * 1000)}ms")
            with stand.load(storage, *words) as ended:
                stack.callback(fault.heal)
                time.sleep(AT_S)
                getattr(fault, what)()
                try:
                    out = ended(LOAD_S + 60)
                except subprocess.TimeoutExpired:
                    return {"error": "fio did not end: a write hangs"}
        began = time.monotonic()
        fault.heal()
        try:
            job = parse(out)
        except (bench.Failure, ValueError) as error:
            return {"error": f"{error}: {out.strip()[-300:]}"}
        if gap:
            # Noticed late, an end of a tap is still an end of a tap.
            bench.wait_for(f"{what}: a gap (none: it was not felt)", 30, lambda: len(gaps(daemon, name)) > len(before))
        # While fio is served, QEMU's one NBD server is taken, and a resync cannot begin.
        bench.wait_for(f"{what}: protection is back", HEALED_S, lambda: daemon.info(name)["state"] == "protected")
        healed = time.monotonic() - began
        new = gaps(daemon, name)[len(before):]
        if new and not gap:
            raise bench.Failure(f"{what}: a gap where none should be: {new}")
        write = job["write"]
        return {"longest_ms": write["lat_ns"]["max"] / 1e6, "p99_us": bench.p99_ns(write) / 1e3, "iops": write["iops"],
                "healed_s": healed}


def run(stand):
    found = {what: [] for what in FAULTS}
    notes, errors = {what: [] for what in FAULTS}, []
    with contextlib.ExitStack() as stack:
        image = stand.disk("faults.raw", DISK)
        state, harbors = file_system(stand, stack)
        with stand.daemon("faults", state) as daemon:
            fault = Fault(daemon, harbors)
            stack.callback(fault.thaw)
            for number in range(bench.ROUNDS):
                for what in FAULTS:
                    bench.say(f"faults: round {number + 1} of {bench.ROUNDS}, {what}")
                    try:
                        done = turn(stand, daemon, fault, image, what)
                    except bench.Failure as error:
                        bench.say(f"faults: {what}: LOST: {error}")
                        notes[what].append(str(error))
                        continue
                    if "error" in done:
                        errors.append(f"{what}: {done['error']}")
                        bench.say(f"faults: GUEST ERROR: {errors[-1]}")
                    else:
                        found[what].append(done)
    for what, (words, *_) in FAULTS.items():
        stand.report.row("faults", words, "depth 16", found[what], lost_turns=notes[what])
    worst = {what: max(one["longest_ms"] for one in rounds) for what, rounds in found.items() if rounds}
    note = "; ".join(f"{what} {bench.figure(value)}" for what, value in worst.items())
    lost = {what: messages for what, messages in notes.items() if messages}
    if errors:
        note += f"; GUEST ERRORS: {errors}"
    if lost:
        note += f"; turns that do not count: {lost}"
    note = note.replace("|", "/").replace("\n", " ")
    if LOAD_S < 7:
        note += f"; loads of {LOAD_S:g} s only"
    value = max(worst.values()) if len(worst) == len(FAULTS) else None
    stand.report.figure("stall", value, note, proven=not errors and not lost and LOAD_S >= 7)
