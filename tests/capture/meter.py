"""What a load did and what the process that received it spent."""

import contextlib
import json
import os
import pathlib
import subprocess
import time

from . import bench

TICK = os.sysconf("SC_CLK_TCK")
# As a thread: a job that is a process would outlive a fio that is killed.
FIXED = ("--name=bench", "--thread", "--randrepeat=0", "--output-format=json")
DEFERRED_S = 0.5  # what was acknowledged from memory is on its way to the disk by then


def family(pid):
    """A process and those it has started: virtcdpd and its guard."""
    found = [pid]
    for parent in found:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def cpu_s(pid):
    """User and system time so far."""
    ticks = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def peak_mib(pid):
    peak = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak += int(line.split()[1]) / 1024
    return peak


def forget_peak(pid):
    for one in family(pid):
        with contextlib.suppress(OSError):
            pathlib.Path(f"/proc/{one}/clear_refs").write_text("5")


def fio(*options):
    """Runs fio; returns its job's write part. Whatever went wrong in it is a failure."""
    job = parse(bench.run("fio", *FIXED, *options))
    return job["write"]


def parse(out):
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job["error"]:
        raise bench.Failure(f"fio: error {job['error']}")
    if not job["write"]["total_ios"]:
        raise bench.Failure("fio wrote nothing")
    return job


def nbd(uri):
    return ("--ioengine=nbd", f"--uri={uri}")


def measured(pid, load):
    """Runs a load and returns what is kept of it, with what the process `pid` spent (None: nobody receives)."""
    if pid:
        forget_peak(pid)
        before = cpu_s(pid)
    done = load()
    kept = numbers(done)
    if pid:
        time.sleep(DEFERRED_S)
        kept["cpu_s_per_million"] = (cpu_s(pid) - before) / done["total_ios"] * 1e6
        kept["peak_mib"] = peak_mib(pid)
    return kept


def numbers(done):
    return {
        "iops": done["iops"],
        "mib_s": done["bw_bytes"] / bench.MIB,
        "p99_us": bench.p99_ns(done) / 1e3,
        "longest_ms": done["lat_ns"]["max"] / 1e6,
        "writes": done["total_ios"],
    }


class Nbdkit:
    """An nbdkit of one plugin, at a socket of its own."""

    def __init__(self, directory, name, *plugin):
        self.sock = directory / f"nbdkit-{name}.sock"
        command = ["nbdkit", "-f", "-U", str(self.sock), *map(str, plugin)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self.pid = self.process.pid
        try:
            bench.wait_for(f"nbdkit {name} listens", 20, self.listens)
        except bench.Failure:
            self.stop()
            raise

    def listens(self):
        if self.process.poll() is not None:
            raise bench.Failure(f"it ended with {self.process.returncode}")
        return self.sock.exists()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
