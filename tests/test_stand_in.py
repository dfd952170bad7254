"""The stand-in for CuPy is as strict as CuPy, and computes what NumPy computes."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import minidl as md
from minidl import nn, optim
from minidl.nn import functional as F


@pytest.fixture
def cupy(stand_in):
    return stand_in.cupy


def test_values_views_and_launches(stand_in, cupy):
    x = cupy.asarray(numpy.arange(6.0).reshape(2, 3))
    assert stand_in.uploads == ["set"] and not stand_in.launches
    row = x[1]
    row += 1
    assert stand_in.launches == ["add"] and row.base is x
    assert cupy.maximum(x, 2.5).sum(axis=0).get().tolist() == [6.5, 7.5, 8.5]
    assert x.T.reshape(6).shape == (6,) and x.reshape(6).data.ptr == x.data.ptr
    y = cupy.empty_like(x)
    assert numpy.isnan(y.get()).all()
    y[...] = x
    y[cupy.asarray([0])] = 7
    assert y.get().tolist() == [[7, 7, 7], [4, 5, 6]]
    cupy.add.at(y, cupy.asarray([1, 1]), 1)
    assert y[1].tolist() == [6, 7, 8]
    half = cupy.full(5000, 1 / 3, "float16")
    assert half.sum().dtype == "float16" and abs(float(half.sum()) - 1666) < 2


def test_what_cupy_refuses(cupy):
    x, host = cupy.ones(3), numpy.ones(3)
    for wrong in (
        lambda: numpy.asarray(x),
        lambda: x + host,
        lambda: host + x,
        lambda: cupy.maximum(x, host),
        lambda: cupy.stack([x, host]),
        lambda: x.sum(where=x > 0),
        lambda: cupy.sum(x, initial=1),
        lambda: cupy.add(x, 1, out=host),
        lambda: x.get(out=numpy.ones(3, "f4")),
        lambda: hash(x),
    ):
        with pytest.raises(TypeError):
            wrong()
    short = cupy.ones((2, 2), "bfloat16")
    for chosen in (cupy.where(short > 0, short, 0), cupy.tril(short)):
        assert chosen.dtype == "float32"
    with pytest.raises(AttributeError):
        cupy.apply_over_everything  # noqa: B018
    with pytest.raises(AttributeError):
        x.byteorder  # noqa: B018
    with pytest.raises(NotImplementedError):
        cupy.multiply.at(x, cupy.asarray([0]), 2)
    with pytest.raises(ValueError, match="non-scalar"):
        x[:2] = host[:2]
    with pytest.raises(RuntimeError, match="a race"):
        x[cupy.asarray([1, 2])] = x[:2]
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cupy.empty(3, object)


def test_the_host_waits_where_it_is_told(stand_in, cupy):
    x = cupy.ones(3)
    float(x[0]), bool(x[1] > 0), x.tolist(), cupy.nonzero(x), x[x > 0]
    assert stand_in.syncs == ["float", "bool", "tolist", "nonzero", "mask"]


def test_devices(stand_in):
    stand_in.remove()
    stand_in.install(devices=2)
    cupy = stand_in.cupy
    x = cupy.ones(2)
    with cupy.cuda.Device(1):
        y = cupy.ones(2)
        with pytest.raises(ValueError, match="different from the current device"):
            y + x
    assert (x.device.id, y.device.id) == (0, 1)
    with pytest.raises(RuntimeError, match="InvalidDevice"):
        cupy.cuda.Device(2)


def test_copies_arrive_when_waited_for(stand_in, cupy):
    stream, event = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Event()
    x = cupy.ones(4)
    host = stand_in.cupyx.empty_pinned(4)
    cupy.cuda.Device().synchronize()
    x.get(stream=stream, out=host, blocking=False)
    event.record(stream)
    assert numpy.isnan(host).all()
    event.synchronize()
    assert (host == 1).all()
    x.set(host, stream=stream)
    host[0] = 2  # too early
    with pytest.raises(RuntimeError, match="pinned memory was written"):
        stream.synchronize()


def test_races_between_streams(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    x = cupy.ones(4)
    with stream:
        with pytest.raises(RuntimeError, match="a race"):
            x + 1
        stream.wait_event(cupy.cuda.Stream.null.record())
        y = x + 1
    with pytest.raises(RuntimeError, match="a race"):
        x += 1
    cupy.cuda.get_current_stream().wait_event(stream.record())
    x += y


def test_memory_freed_while_another_stream_uses_it(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    x = cupy.ones(4)
    stream.wait_event(cupy.cuda.Stream.null.record())
    with stream:
        y = x + 1
    del x
    with pytest.raises(RuntimeError, match="was freed while"):
        cupy.ones(1)
    del y


def captured(cupy, function):
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    cupy.cuda.Device().synchronize()
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            result = function()
        finally:
            graph = stream.end_capture()
    return graph, result, pool, stream


def test_graphs_record_and_replay(stand_in, cupy):
    x, total = cupy.zeros(3), cupy.zeros(())
    add = cupy.ElementwiseKernel("T a, T b", "T c", "c = a + b;", "stand_in_add")

    add(x, 2.0)  # the first launch loads it, which cannot be captured

    def step():
        x[...] += 1
        y = add(x, 2.0)
        total[...] = (y * x).sum()
        return y

    graph, y, _pool, stream = captured(cupy, step)
    assert x.tolist() == [0, 0, 0] and numpy.isnan(y.get(stream=stream)).all()
    for n in (1, 2, 3):
        graph.launch(stream)
        stream.synchronize()
        assert x.tolist() == [n] * 3 and y.tolist() == [n + 2] * 3
        assert float(total) == 3 * n * (n + 2)
    assert stand_in.launches.count("graph") == 3


def test_what_a_capture_refuses(cupy):
    x = cupy.ones((2, 2))
    for wrong, error in (
        (lambda: x @ x, NotImplementedError),
        (lambda: x.sum().item(), RuntimeError),
        (lambda: cupy.asarray([1.0]), RuntimeError),
        (lambda: x[x > 0], RuntimeError),
        (lambda: x.get(), RuntimeError),
    ):
        with pytest.raises(error, match="captur"):
            captured(cupy, wrong)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, pytest.raises(RuntimeError, match="capturing"):
        stream.begin_capture()
        stream.synchronize()
    with pytest.raises(RuntimeError, match="[Ii]nvalidated"):
        stream.end_capture()
    with pytest.raises(RuntimeError, match="legacy"):
        cupy.cuda.Stream.null.begin_capture()


def test_a_graph_needs_its_memory(cupy):
    x = cupy.ones(3)
    graph, _y, pool, stream = captured(cupy, lambda: (x + 1) * 2)
    graph.launch(stream)
    del pool
    gc.collect()
    with pytest.raises(RuntimeError, match="memory that was freed"):
        graph.launch(stream)


def test_streams_join_a_capture(cupy):
    side, x = cupy.cuda.Stream(non_blocking=True), cupy.ones(3)

    def fork(join):
        main = cupy.cuda.get_current_stream()
        side.wait_event(main.record())
        with side:
            y = x * 3
        if join:
            main.wait_event(side.record())
        return y

    graph, y, _pool, stream = captured(cupy, lambda: fork(True))
    graph.launch(stream)
    assert y.get(stream=stream).tolist() == [3, 3, 3]
    with pytest.raises(RuntimeError, match="[Uu]njoined"):
        captured(cupy, lambda: fork(False))


def test_memory_is_counted(cupy):
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        x = cupy.zeros(1000, "f4")
    assert pool.used_bytes() == 4096 and pool.total_bytes() == 4096
    del x
    assert pool.used_bytes() == 0 and pool.free_bytes() == 4096
    pool.free_all_blocks()
    assert pool.total_bytes() == 0


def test_a_kernel_outside_of_its_memory(cupy):
    wild = cupy.RawKernel(
        'extern "C" __global__ void wild(float* x) { x[8 + threadIdx.x] = 1; }', "wild"
    )
    x = cupy.zeros(8, "f4")
    with pytest.raises(MemoryError, match="outside"):
        wild((1,), (4,), (x,))


def test_seams_for_libraries(stand_in, cupy):
    x = cupy.asarray(numpy.arange(8.0))
    memory, found = stand_in.memory_at(x[2:].data.ptr, 16)
    assert found.view("f8").tolist() == [2, 3]
    with pytest.raises(MemoryError, match="no 64 bytes"):
        stand_in.memory_at(x[2:].data.ptr, 64)
    stream = cupy.cuda.Stream(non_blocking=True)
    assert stand_in.stream_of(stream.ptr) is stream
    with pytest.raises(RuntimeError, match="a race"):
        stand_in.enqueue("read", list, [(memory, found)], (), stream)


def test_a_program_runs_on_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import minidl as md\n"
        "from minidl.array.device import use_device\n"
        "with use_device('cuda:1'):\n"
        "    x = md.ones(3, device='cuda')\n"
        "    print((x + 1).sum().item(), x.device)\n"
    )
    command = [sys.executable, Path(__file__).parent / "stand_in.py", program]
    settings = os.environ | {"STAND_IN_DEVICES": "2"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.stdout == "6.0 cuda:1\n", done.stderr


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.linear(x.flatten(1))


def trained(device):
    md.manual_seed(0)
    model = Small().to(md.float64).to(device)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    rng = numpy.random.default_rng(0)
    for _ in range(3):
        images = md.tensor(rng.normal(size=(5, 1, 8, 8)), device=device)
        labels = md.tensor(rng.integers(0, 10, 5), device=device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    return model, loss


@pytest.mark.slow
def test_a_small_network_trains_as_on_the_cpu(stand_in):
    mine, loss = trained("cuda")
    assert not stand_in.syncs  # also in Adam, and in three steps
    theirs, expected = trained("cpu")
    assert loss.device == "cuda:0"
    numpy.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-9)
    for (name, x), y in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        numpy.testing.assert_allclose(x.numpy(), y.numpy(), 1e-6, 1e-9, err_msg=name)
