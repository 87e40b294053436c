"""A guest's writes without protection, with QEMU's mirror to an nbdkit, and with virt-cdp."""

import contextlib

from . import bench
from .meter import Nbdkit, fio, measured, nbd
from .report import short
from .stand import DISK, MOST_BYTES, SECONDS

FIGURES = ("null", "file", "cpu")
# Words, fio's --rw, block size, depth.
WORKS = (
    ("4 KiB random, depth 1", "randwrite", 4096, 1),
    ("4 KiB random, depth 32", "randwrite", 4096, 32),
    ("64 KiB sequential, depth 8", "write", 65536, 8),
    ("1 MiB sequential, depth 8", "write", 1 << 20, 8),
)
NBDKITS = {"b": "null", "c": "memory", "d": "file"}
CONFIGURATIONS = {
    "a": "no protection",
    "b": "mirror to `nbdkit null`",
    "c": "mirror to `nbdkit memory`",
    "d": "mirror to `nbdkit file`, same disk",
    "e0": "virt-cdp buffered, harbor on tmpfs",
    "e": "virt-cdp buffered, same disk",
    "f": "virt-cdp durable, same disk",
}


def options(work, seconds=SECONDS):
    _, rw, block, depth = work
    return (f"--rw={rw}", f"--bs={block}", f"--iodepth={depth}", "--norandommap", f"--size={DISK}",
            f"--io_size={MOST_BYTES}", f"--runtime={round(seconds * 1000)}ms")


class Mirror:
    def __init__(self, stand, stack):
        self.stand = stand
        self.image = stand.disk("source.raw")
        copy = stand.disk("nbdkit.raw")
        plugins = {"null": (f"size={DISK}",), "memory": (str(DISK),), "file": (f"file={copy}",)}
        self.nbdkits, self.daemons = {}, {}
        for key, plugin in NBDKITS.items():
            self.nbdkits[key] = Nbdkit(stand.run_dir, f"mirror-{plugin}", plugin, *plugins[plugin])
            stack.callback(self.nbdkits[key].stop)
        places = (("e0", "buffered", stand.tmpfs(stack, "tmpfs")), ("e", "buffered", None), ("f", "durable", None))
        for key, ack, place in places:
            self.daemons[key] = stack.enter_context(stand.daemon(f"mirror-{key}", place, ack))

    @contextlib.contextmanager
    def configured(self, key, storage):
        """Puts the configuration in place; yields the pid of what receives, and what proves that it did."""
        if key == "a":
            yield None, lambda _: None
        elif key in NBDKITS:
            with storage.mirrored(self.nbdkits[key].sock):
                yield self.nbdkits[key].pid, lambda _: None
        else:
            daemon = self.daemons[key]
            with self.stand.protected(daemon, storage, key) as name:
                before = daemon.info(name)["writes"]

                def proof(writes):
                    bench.wait_for(f"{key}: the daemon has counted {writes} writes", 5,
                                   lambda: daemon.info(name)["writes"] >= before + writes)

                yield daemon.process.pid, proof

    def turn(self, key, seconds):
        """All works with one configuration, on a storage daemon of its own."""
        done = {}
        with self.stand.storage_daemon(self.image) as storage, self.configured(key, storage) as (pid, proof):
            self.stand.settle()
            with storage.served(mirrored=key != "a"):
                writes = 0
                for work in WORKS:
                    load = lambda: fio(*nbd(storage.uri()), *options(work, seconds))
                    done[work] = measured(pid, load)
                    writes += done[work]["writes"]
                    proof(writes)
                # A mirror that failed under way is no mirror: the guest was fast without it.
                jobs = storage.execute("query-block-jobs")
                if len(jobs) != (key != "a"):
                    raise bench.Failure(f"{key}: the mirror did not stand to the end")
        return done


def run(stand):
    found = {(work, key): [] for work in WORKS for key in CONFIGURATIONS}
    lost = {key: 0 for key in CONFIGURATIONS}
    with contextlib.ExitStack() as stack:
        mirror = Mirror(stand, stack)
        for turn in range(bench.ROUNDS + 1):
            for key in CONFIGURATIONS:
                bench.say(f"mirror: round {turn} of {bench.ROUNDS}, {key}")
                try:
                    done = mirror.turn(key, SECONDS if turn else min(1, SECONDS))
                except bench.Failure as error:
                    bench.say(f"mirror: round {turn}, {key}: LOST: {error}")
                    lost[key] += 1
                    continue
                # The first round warms up what lies below, and is not counted.
                if turn:
                    for work, numbers in done.items():
                        found[work, key].append(numbers)
    medians = {}
    for work in WORKS:
        for key, words in CONFIGURATIONS.items():
            label = f"({key}) {words}" + (f"; {lost[key]} turns LOST" if lost[key] else "")
            medians[work, key] = stand.report.row("mirror", work[0], label, found[work, key], lost_turns=lost[key])
    compare(stand.report, medians, "null", "e0", "b", "iops", min)
    compare(stand.report, medians, "file", "e", "d", "iops", min)
    return [cpu for key in ("e0", "e") for cpu in ratios(medians, key, "c", "cpu_s_per_million")]


def ratios(medians, ours, reference, name):
    """Of each work: the ratio and words for it; none where one of the two is missing."""
    found = []
    for work in WORKS:
        mine, other = (medians[work, key].get(name) for key in (ours, reference))
        if mine is not None and other:
            found.append((mine / other, f"({ours})/({reference}) {work[0]}"))
    return found


def compare(report, medians, figure, ours, reference, name, worst):
    found = ratios(medians, ours, reference, name)
    if len(found) < len(WORKS):
        report.figure(figure, None, "rows are missing")
    else:
        note = "; ".join(f"{words}: {short(ratio)}" for ratio, words in found)
        report.figure(figure, worst(found)[0], note)
