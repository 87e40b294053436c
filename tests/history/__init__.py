"""The parts of tests/bench-history; what they share with tests/bench-capture is there."""

import contextlib
import json
import os
import subprocess

from capture import bench
from capture.meter import FIXED, nbd

HARBOR_ALONE = os.environ.get("HARBOR_ALONE", str(bench.REPO / "target/debug/examples/harbor_alone"))


def alone(*words):
    """Runs `harbor_alone`; returns what it says."""
    return json.loads(bench.run(HARBOR_ALONE, *words).splitlines()[-1])


@contextlib.contextmanager
def served(directory, sock):
    """The newest point of a harbor, served; yields its URI."""
    words = [HARBOR_ALONE, "serve", str(directory), str(sock)]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        bench.wait_for("the view is served", 60, sock.exists)
        yield f"nbd+unix:///vda?socket={sock}"
    finally:
        server.stdin.close()
        server.wait()
        sock.unlink(missing_ok=True)


def read(uri, *options):
    """Reads with fio; returns IOPS and MiB/s."""
    out = bench.run("fio", *FIXED, *nbd(uri), *options)
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job["error"] or not job["read"]["total_ios"]:
        raise bench.Failure(f"fio: error {job['error']}, {job['read']['total_ios']} reads")
    return {"iops": job["read"]["iops"], "mib_s": job["read"]["bw_bytes"] / bench.MIB}


def drop_pages(paths):
    """Has nothing of some files in the page cache."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_of(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())
