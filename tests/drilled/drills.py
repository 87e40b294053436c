"""What a drill takes, several at once, beside a guest that writes; and a search among a day's points."""

import threading
import time

from capture.report import short

from . import bench, drill, guests

POINTS = 86_400
AT_ONCE = 4
# A guest's writes: one at a time, at a rate that leaves the disk room.
LOAD = ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--rate_iops=400", "--norandommap", "--size=256m", "--time_based")
LOAD_S = 12


def overhead(stand):
    all_of_it = bench.Bench(stand.stack)
    with guests(stand.stack, all_of_it.daemon, all_of_it.images, 2) as (ours, other):
        # The other one is what is started: the protected one goes on.
        all_of_it.daemon.cli("unprotect", other.name, "--delete")
        other.halt()
        rounds = []
        for number in range(bench.ROUNDS + 1):
            seconds, told = drill(all_of_it.daemon, ours.name)
            bare = other.boot()
            other.halt()
            if number:
                rounds.append({"drill_s": seconds, "boot_s": bare, "rto_s": told["rto_ms"] / 1000})
    middle = stand.report.row("overhead", "small guest, ready by its console, ping", "start to report", rounds)
    note = f"{short(middle['drill_s'])} s against {short(middle['boot_s'])} s; RTO {short(middle['rto_s'])} s"
    stand.report.figure("overhead", middle["drill_s"] - middle["boot_s"], note)


def parallel(stand):
    all_of_it = bench.Bench(stand.stack)
    with guests(stand.stack, all_of_it.daemon, all_of_it.images, AT_ONCE) as machines:
        rounds, all_pass = [], True
        for _ in range(bench.ROUNDS):
            began = time.monotonic()
            done = [drill(all_of_it.daemon, machine.name)[1] for machine in machines]
            one_by_one = time.monotonic() - began
            together, found = at_once(all_of_it.daemon, machines)
            all_pass &= all(one["verdict"] == "proved" for one in done + found)
            rounds.append({"serial_s": one_by_one, "parallel_s": together})
    middle = stand.report.row("parallel", f"{AT_ONCE} drills", "one after the other, and at once", rounds)
    note = f"{short(middle['parallel_s'])} s against {short(middle['serial_s'])} s"
    stand.report.figure("parallel", middle["parallel_s"] / middle["serial_s"], note, proven=all_pass)


def at_once(daemon, machines):
    found = []

    def one(machine):
        found.append(drill(daemon, machine.name)[1])

    began = time.monotonic()
    threads = [threading.Thread(target=one, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) != len(machines):
        raise bench.Failure("a drill has failed")
    return time.monotonic() - began, found


def beside(stand):
    all_of_it = bench.Bench(stand.stack)
    found = {"drill": [], "start": []}
    with guests(stand.stack, all_of_it.daemon, all_of_it.images, 2) as (ours, other):
        all_of_it.daemon.cli("unprotect", other.name, "--delete")
        other.halt()
        image = stand.disk("beside.raw")
        with stand.storage_daemon(image) as storage, stand.protected(all_of_it.daemon, storage, "beside"):
            with storage.served(mirrored=True):
                for number in range(bench.ROUNDS + 1):
                    for state in found:
                        done = loaded(storage, all_of_it.daemon, ours, other, state)
                        if number:
                            found[state].append(done)
    during = stand.report.row("beside", "4 KiB, one at a time", "a drill beside it", found["drill"])
    against = stand.report.row("beside", "4 KiB, one at a time", "the start of a VM beside it", found["start"])
    note = f"mean {short(during['mean_us'])} against {short(against['mean_us'])} us"
    stand.report.figure("beside", during["mean_us"] / against["mean_us"], note)


def loaded(storage, daemon, ours, other, state):
    """The latency of writes while drills are held, or a VM is started again and again."""
    over = threading.Event()

    def busy():
        while not over.is_set():
            if state == "drill":
                drill(daemon, ours.name)
            else:
                other.boot()
                other.halt()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        done = storage.fio(*LOAD, f"--runtime={LOAD_S}")
    finally:
        over.set()
        thread.join()
    latency = done["clat_ns"]
    return {"mean_us": latency["mean"] / 1000, "p99_us": latency["percentile"]["99.000000"] / 1000}


def bisect(stand):
    from history import alone
    from history.views import CALM

    work = stand.tmpfs(stand.stack, "bisect")
    harbors = work / "state/harbors"
    harbors.mkdir(parents=True)
    made = alone("points", harbors / "view-alone", POINTS)
    if made["points"] != POINTS:
        raise bench.Failure(f"{made['points']} points were made")
    script = work / "good"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    run_dir = stand.run_dir / "bisect"
    run_dir.mkdir(mode=0o711)
    daemon = bench.Daemon(work, run_dir, work, CALM, "virtcdpd-bisect.log")
    rounds, worst = [], 0
    try:
        name = daemon.cli("list")["machines"][0]["name"]
        for good in (1, 31_415, 43_200, 70_000, POINTS):
            (work / "limit").write_text(str(good))
            began = time.monotonic()
            told = daemon.cli("bisect", name, "--from", "1", "--script", script, "--restart")
            seconds = time.monotonic() - began
            if told["newest_good"]["id"] != good:
                raise bench.Failure(f"{told['newest_good']} was found where {good} is right")
            rounds.append({"seconds": seconds, "probes": len(told["probes"])})
    finally:
        daemon.stop()
    worst = max(one["probes"] for one in rounds)
    stand.report.row("bisect", f"{POINTS:,} points", "a script on views", rounds)
    slowest = max(one["seconds"] for one in rounds)
    stand.report.figure("probes", worst, f"the most of {len(rounds)} searches")
    stand.report.figure("search", slowest, "the slowest of them, with the program's start")


# Good as long as the number at the beginning of the disk is not beyond what stands beside it.
SCRIPT = """#!/usr/bin/env python3
import nbd, os, pathlib, sys
disk = nbd.NBD()
disk.connect_uri(os.environ["VIRT_CDP_VIEW_vda"])
number = int.from_bytes(disk.pread(8, 0), "little")
sys.exit(number > int((pathlib.Path(sys.argv[0]).parent / "limit").read_text()))
"""
