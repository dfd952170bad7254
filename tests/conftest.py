"""What all tests share: the array modules to run on, and repeatable hypothesis."""

import gc
import importlib
import pkgutil
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
from hypothesis import settings

import minidl
from minidl.array import loops
from minidl.array.device import cupy_module, gpu_available
from minidl.array.kernel import Kernel
from minidl.array.threads import get_num_threads, set_num_threads
from minidl.ops.pointwise import Pointwise

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
settings.register_profile(
    "minidl", deadline=None, derandomize=True, max_examples=30, database=None
)
settings.load_profile("minidl")


def pytest_addoption(parser):
    parser.addoption(
        "--stand-in",
        action="store_true",
        help="run what asks for CuPy with the stand-in for it; see stand_in.py",
    )


def pytest_collection_modifyitems(items):
    """Files with slow tests first: then processes that share the files end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """NumPy, and CuPy where there is a CUDA device, or with --stand-in."""
    if request.param == "numpy":
        return numpy
    if request.config.getoption("--stand-in"):
        return request.getfixturevalue("stand_in").cupy
    if not gpu_available():
        pytest.skip("no CUDA device")
    return cupy_module()


@pytest.fixture
def without_collector():
    """No garbage collector: what is freed is freed by reference counting."""
    numpy.testing.assert_allclose(1.0, 1.0)  # its first call leaves cycles of its own
    while gc.collect():  # what one round frees, as of a picture, may leave more
        pass
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def quickly():
    """Trainings without pictures, and on one thread: the arrays are small."""
    threads = get_num_threads()
    set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minidl.train.recipe.draw_curves", lambda *_: None)
        yield
    set_num_threads(threads)


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels run in NumPy: for tests of the mathematics in types and orders that
    would take a compiler half a second each."""
    monkeypatch.setattr(loops, "compiler", SimpleNamespace(load=lambda *source: None))
    yield
    for kernel in Kernel.registry.values():
        kernel._plans.clear()


@cache
def all_kernels() -> dict[str, Kernel]:
    """Every kernel of the package, by name."""
    for module in pkgutil.walk_packages(minidl.__path__, "minidl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    made = Kernel.registry.items()
    return {name: kernel for name, kernel in made if not name.startswith("test_")}


@cache
def derived_kernels() -> dict[str, Kernel]:
    """Those of first and second derivatives, which are otherwise made when needed."""
    known = all_kernels()
    functions = [x for x in gc.get_objects() if type(x) is Pointwise]
    functions = [function for function in functions if function.name in known]
    found = {}
    for _ in range(2):
        functions = [
            gradient
            for function in functions
            for position, _ in enumerate(function.arguments)
            if (gradient := function.gradient(position)[0]) is not None
        ]
        found |= {function.name: function.kernel for function in functions}
    return found


@pytest.fixture
def stand_in(monkeypatch):
    """A strict stand-in for CuPy, where there is no CUDA device; see stand_in.py."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    import stand_in as module

    module.install()
    yield module
    monkeypatch.undo()  # what a test has put in place of a piece of the stand-in
    module.remove()


@pytest.fixture
def scripts(monkeypatch):
    """The modules of scripts/gpu_check.py, by the second half of their names."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    names = [file.stem for file in SCRIPTS.glob("gpu_*.py") if file.stem != "gpu_jax"]
    return SimpleNamespace(**{n[4:]: importlib.import_module(n) for n in names})
