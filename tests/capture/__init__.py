"""The parts of tests/bench-capture, one section a file; what they share with tests/bench is `capture.bench`."""

import importlib.util
import pathlib
import sys
from importlib.machinery import SourceFileLoader

sys.dont_write_bytecode = True


def _load(path):
    """A program without .py at the end of its name, as a module."""
    loader = SourceFileLoader("bench", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bench", loader))
    loader.exec_module(module)
    return module


bench = _load(pathlib.Path(__file__).resolve().parent.parent / "bench")
