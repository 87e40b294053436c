"""Base points, verification and size: what is done with what is kept, and what it costs the guest."""

import signal
import time

from capture.meter import measured
from capture.report import short
from capture.stand import SECONDS

from . import alone, bench, drop_pages, files_of

CHANGED_MIB, CHANGED_GIB = 2048, 4
VERIFIED_MIB, VERIFIED_GIB = 1024, 3
HOURS = 24
# What the guest writes to while layers of it are built, and the most layers there are.
AREA_MIB, LAYERS = 256, 8
# Base points as often as can be, and nothing but those.
BUSY = '[tidy]\ninterval = "1s"\nbase_interval = "1s"\nscrub_interval = "0s"\n'
CALM = '[tidy]\ninterval = "1h"\nscrub_interval = "0s"\n'


def build(stand):
    harbor = stand.work / "changed"
    bench.say(f"build: making a harbor with {CHANGED_MIB} MiB changed")
    alone("changed", harbor, CHANGED_MIB, CHANGED_GIB)
    plain, copy = stand.work / "plain.qcow2", stand.work / "copy.qcow2"
    ours, theirs = [], []
    for number in range(bench.ROUNDS + 1):
        stand.settle()
        done = alone("build", harbor)
        layer = bench.pathlib.Path(done["layer"])
        if not number:
            # What the layer holds, without what lies below it.
            bench.run("cp", layer, plain)
            bench.run("qemu-img", "rebase", "-u", "-b", "", plain)
        hashes = layer.with_suffix(".hashes")
        layer.unlink()
        hashes.unlink()
        stand.settle()
        began = time.monotonic()
        bench.run("qemu-img", "convert", "-T", "none", "-t", "writeback", "-O", "qcow2", plain, copy)
        bench.run("sync", "-f", copy)
        other = time.monotonic() - began
        copy.unlink()
        if number:
            ours.append({"mib_s": CHANGED_MIB / done["seconds"], "cpu_s": done["cpu_seconds"]})
            theirs.append({"mib_s": CHANGED_MIB / other})
    what = f"{CHANGED_MIB} MiB of whole clusters"
    own = stand.report.row("build", what, "base point, with hashes, synced", ours)
    peer = stand.report.row("build", what, "`qemu-img convert`, `sync -f`", theirs)
    note = f"{short(own['mib_s'])} against {short(peer['mib_s'])} MiB/s"
    stand.report.figure("build", own["mib_s"] / peer["mib_s"], note)


def verify(stand):
    harbor = stand.work / "verified"
    alone("changed", harbor, VERIFIED_MIB, VERIFIED_GIB)
    alone("build", harbor)
    files = files_of(harbor)
    total = sum(path.stat().st_size for path in files) / bench.MIB
    ours, theirs = [], []
    for _ in range(bench.ROUNDS):
        drop_pages(files)
        done = alone("verify", harbor)
        if done["findings"]:
            raise bench.Failure(f"{done['findings']} findings in a sound harbor")
        ours.append({"mib_s": done["bytes"] / bench.MIB / done["seconds"], "cpu_s": done["cpu_seconds"]})
        drop_pages(files)
        began = time.monotonic()
        bench.run("b3sum", *files)
        theirs.append({"mib_s": total / (time.monotonic() - began)})
    what = f"{total / 1024:.1f} GiB, not cached"
    own = stand.report.row("verify", what, "harbor verified", ours)
    peer = stand.report.row("verify", what, "`b3sum` of its files", theirs)
    note = f"{short(own['mib_s'])} against {short(peer['mib_s'])} MiB/s"
    stand.report.figure("verify", own["mib_s"] / peer["mib_s"], note)


def size(stand):
    harbor, image, packed = stand.work / "day", stand.work / "day.qcow2", stand.work / "packed.qcow2"
    bench.say(f"size: {HOURS} hours")
    day = alone("day", harbor, HOURS)
    on_disk = sum(path.stat().st_blocks * 512 for path in files_of(harbor))
    alone("export", harbor, image)
    bench.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", image, packed)
    numbers = {"harbor_mib": on_disk, "incrementals_mib": day["incrementals_bytes"],
               "one_full_compressed_mib": packed.stat().st_blocks * 512, "written_mib": day["written_bytes"]}
    numbers = {name: value / bench.MIB for name, value in numbers.items()}
    stand.report.row("size", f"{HOURS} hours, {day['points']} points", f"{day['layers']} layers", [numbers])
    note = f"{short(numbers['harbor_mib'])} MiB for {day['points']} points, {short(numbers['incrementals_mib'])} MiB for "
    note += f"a full and {HOURS} incrementals; a compressed full of one moment {short(numbers['one_full_compressed_mib'])}"
    stand.report.figure("size", numbers["harbor_mib"] / numbers["incrementals_mib"], note,
                        proven=HOURS < day["points"] <= HOURS + 2)


def configured(daemon, settings):
    """Has the daemon take other settings, as an upgrade does."""
    text = daemon.config.read_text()
    daemon.config.write_text(text[:text.index("[tidy]")] + settings)
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(1.5)


def guest(stand):
    image = stand.disk("guest.raw")
    work, run_dir = stand.work / "upkeep", stand.run_dir / "upkeep"
    work.mkdir()
    run_dir.mkdir(mode=0o711)
    daemon = bench.Daemon(work, run_dir, work, CALM, "virtcdpd-upkeep.log")
    found, merging, log = {"calm": [], "busy": []}, 0, bench.OUT / "virtcdpd-upkeep.log"
    words = ("--rw=randwrite", "--bs=4k", "--iodepth=16", "--norandommap", f"--size={AREA_MIB}m", "--time_based",
             f"--runtime={round(SECONDS * 5000)}ms")
    few = (*words[:-3], "--size=1m", "--io_size=1m")
    try:
        with stand.storage_daemon(image) as storage, stand.protected(daemon, storage, "upkeep") as name:
            with storage.served(mirrored=True):
                configured(daemon, BUSY)
                # As many layers as there may be: from then on, each that is built has others merged.
                for count in range(2, LAYERS + 1):
                    storage.fio(*few, f"--offset={count}m")
                    bench.wait_for(f"{count} layers", 60, lambda: len(layers_of(daemon, name)) >= count)
                for number in range(bench.ROUNDS + 1):
                    for state, settings in (("calm", CALM), ("busy", BUSY)):
                        configured(daemon, settings)
                        daemon.wait_protected(name)
                        before, merged = base_of(daemon, name), merges(log)
                        done = measured(daemon.process.pid, lambda: storage.fio(*words))
                        if (base_of(daemon, name) != before) != (state == "busy"):
                            raise bench.Failure(f"base points were {'not ' * (state == 'busy')}built while {state}")
                        if number:
                            found[state].append(done)
                            merging += merges(log) - merged
    finally:
        daemon.stop()
    calm = stand.report.row("guest", "4 KiB random, depth 16", "nothing is built", found["calm"])
    busy = stand.report.row("guest", "4 KiB random, depth 16", "base points are built and merged all the time", found["busy"])
    note = f"{short(busy['iops'])} against {short(calm['iops'])} writes/s; {merging} merges; `tidy.rate` as it is by default"
    stand.report.figure("upkeep", busy["iops"] / calm["iops"], note, proven=merging >= bench.ROUNDS)


def merges(log):
    """How often layers were merged so far."""
    return log.read_text(errors="replace").count("layers merged")


def layers_of(daemon, name):
    return [path for path, _ in base_of(daemon, name) if path.endswith(".qcow2")]


def base_of(daemon, name):
    """The layers that are there, and what is being written. At `tidy.rate` one may take longer than a load."""
    base = bench.pathlib.Path(daemon.info(name)["harbor"]) / "base"
    return sorted((path.name, path.stat().st_size) for path in base.glob("*/*"))
