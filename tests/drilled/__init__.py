"""The parts of tests/bench-drill; what they share with tests/bench-capture is there."""

import contextlib
import pathlib
import tempfile
import time

from capture import bench

READY = "small guest ready"


class Small:
    """A small guest with a network card, and its console in a file."""

    def __init__(self, images, name):
        self.guest = bench.Guest(name)
        self.name = name
        self.console = images / f"{name}.console"
        image = images / f"{name}.qcow2"
        bench.run("qemu-img", "create", "-q", "-f", "qcow2", image, "64M")
        words = ("--disk", f"{image}:qcow2", "--network", "default", "--console-log", str(self.console))
        xml = bench.run(bench.TESTS / "guest/domain-xml", "small", name, *words)
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(xml)
            file.flush()
            bench.virsh("define", file.name)

    def boot(self):
        """Starts it; seconds until its console says that it is ready."""
        self.console.unlink(missing_ok=True)
        began = time.monotonic()
        bench.virsh("start", self.name)
        bench.wait_for(f"{self.name} is ready", 120, self.is_ready, 0.02)
        return time.monotonic() - began

    def is_ready(self):
        with contextlib.suppress(OSError):
            return READY in self.console.read_text(errors="replace")
        return False

    def halt(self):
        bench.virsh("destroy", self.name)


@contextlib.contextmanager
def guests(stack, daemon, images, count):
    """Protected small guests that run."""
    made = []
    for number in range(count):
        guest = Small(images, f"virt-cdp-bench-{pathlib.Path(images).name[-6:]}-{number}")
        stack.callback(guest.guest.remove)
        guest.boot()
        daemon.cli("protect", guest.name)
        made.append(guest)
    yield made


def drill(daemon, name):
    """Holds a drill; seconds it took, and what it said."""
    began = time.monotonic()
    told = daemon.cli("drill-run", name, "--ready", f"console:{READY}", "--check", "boot", "--check", "ping")
    return time.monotonic() - began, told["drills"][0]
