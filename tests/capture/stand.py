"""The stand-in guest and what it is protected with: disks, daemons, nbdkits, a tmpfs; all of it undone at the end."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

from . import bench
from .meter import FIXED, fio, nbd

SECONDS = float(os.environ.get("BENCH_SECONDS", "3"))  # of one fio run
# Sequential loads stop at that, so that the journals of a round fit into a tmpfs.
MOST_BYTES = bench.GIB
DISK = 1 * bench.GIB
TMPFS = "8g"
TMPFS_USES_GIB = 4
FREE_GIB = 12  # beside what ingest and recovery are told to write


class RawStorageDaemon(bench.StorageDaemon):
    """qemu-storage-daemon with one node, `disk0`, over a raw file past the page cache, by io_uring."""

    def nodes(self, image):
        file = f"driver=file,node-name=file0,filename={image},cache.direct=on,aio=io_uring"
        return (file, "driver=raw,node-name=disk0,file=file0")

    def uri(self):
        return f"nbd+unix:///disk0?socket={self.nbd}"


class Stand:
    """Where everything lies. `stack` undoes what was made, the last first."""

    def __init__(self, stack, report, need_gib):
        self.stack, self.report = stack, report
        base = pathlib.Path(os.environ.get("BENCH_DIR", "/var/tmp"))
        free = shutil.disk_usage(base).free / bench.GIB
        need = FREE_GIB + need_gib
        if free < need:
            raise bench.Failure(f"{base} has {free:.1f} GiB free; {need:.0f} are needed (BENCH_DIR is another place)")
        self.work = self.directory(tempfile.mkdtemp(prefix="virt-cdp-capture.", dir=base))
        pathlib.Path("/run/virt-cdp").mkdir(exist_ok=True)
        self.run_dir = self.directory(tempfile.mkdtemp(prefix="capture.", dir="/run/virt-cdp"))

    def directory(self, path):
        path = pathlib.Path(path)
        path.chmod(0o711)
        self.stack.callback(shutil.rmtree, path, ignore_errors=True)
        return path

    def settle(self):
        """Nothing of an earlier load is left to be written out."""
        bench.run("sync", "-f", self.work)

    def disk(self, name, bytes_=DISK):
        """A raw file with something in every block, so that no load allocates."""
        path = self.work / name
        bench.say(f"making {name}, {bytes_ / bench.GIB:.2f} GiB")
        fio(f"--filename={path}", "--rw=write", "--bs=1m", "--direct=1", "--ioengine=io_uring", "--iodepth=8",
            f"--size={bytes_}", "--end_fsync=1", "--fallocate=none")
        return path

    def tmpfs(self, stack, name):
        words = re.search(r"MemAvailable: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text())
        available = int(words[1]) / bench.MIB if words else 0
        if available < TMPFS_USES_GIB:
            raise bench.Failure(f"{available:.1f} GiB of memory are free; a tmpfs needs {TMPFS_USES_GIB}")
        path = self.work / name
        path.mkdir()
        bench.run("mount", "-t", "tmpfs", "-o", f"size={TMPFS},mode=711", "virt-cdp-bench", path)
        stack.callback(unmount, path)
        return path

    @contextlib.contextmanager
    def daemon(self, name, work=None, ack="buffered"):
        """A virtcdpd with its state below `work`, and sockets and a log of its own."""
        work = work or self.work / name
        work.mkdir(exist_ok=True)
        run_dir = self.run_dir / name
        run_dir.mkdir(mode=0o711)
        daemon = bench.Daemon(work, run_dir, work, f'[capture]\nack = "{ack}"\n', f"virtcdpd-{name}.log")
        try:
            yield daemon
        finally:
            with contextlib.suppress(OSError):
                daemon.process.send_signal(signal.SIGCONT)
            daemon.stop()

    @contextlib.contextmanager
    def storage_daemon(self, image):
        directory = pathlib.Path(tempfile.mkdtemp(dir=self.run_dir))
        storage = RawStorageDaemon(directory, image)
        try:
            yield storage
        finally:
            storage.quit()
            shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def protected(self, daemon, storage, name):
        """Protects the storage daemon's disk, and deletes what was kept of it at the end, whatever happens."""
        name = f"bench-{name}-{os.getpid()}"
        try:
            daemon.cli("protect", name, "--qmp", storage.qmp, "--node", "disk0")
            daemon.wait_protected(name)
            yield name
        finally:
            daemon.forget(name)

    @contextlib.contextmanager
    def load(self, storage, *options):
        """fio on the served disk in the background; what is yielded waits so many seconds for its end, and returns what
        it printed."""
        words = ["fio", *FIXED, *nbd(storage.uri()), *options]
        running = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, start_new_session=True)
        try:
            yield lambda seconds: running.communicate(timeout=seconds)[0]
        finally:
            if running.poll() is None:
                running.kill()
                running.communicate()


def unmount(path):
    bench.run("umount", "-l", path)


def gaps(daemon, name):
    return [gap["reason"] for gap in daemon.info(name)["gaps"]]
