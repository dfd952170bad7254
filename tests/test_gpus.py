"""Which GPU a rank takes, and by which way arrays travel."""

import pytest

import minidl as md
from minidl import distributed, nn, optim
from minidl.array.errors import DependencyError, DeviceError, DistributedError
from minidl.distributed import Simulated, gpus
from minidl.distributed.gpus import Gpu, Report
from minidl.nn import functional as F


def seen(*buses):
    return [Gpu(f"0000:0{bus}:00.0", "") for bus in buses]


@pytest.mark.parametrize(
    "everyone, chosen",
    [
        ([("a", seen(1, 2, 3))] * 3, [0, 1, 2]),
        ([("a", seen(1, 2)), ("b", seen(1, 2))] * 2, [0, 0, 1, 1]),
        ([("a", seen(1)), ("a", seen(2)), ("b", seen(1))], [0, 0, 0]),  # bound
        ([("a", seen(1, 2)), ("a", seen(1))], [1, 0]),
        ([("a", seen(1, 2)), ("a", seen(3, 4))], [0, 0]),
        ([("a", seen(1))] * 2, [0, None]),
        ([("a", seen(1, 2))] * 3, [0, 1, None]),
        ([("a", seen(1)), ("a", [])], [0, None]),
    ],
)
def test_every_rank_chooses_a_gpu_of_its_own(everyone, chosen):
    assert gpus.choose(everyone, share=False) == chosen


def test_ranks_that_share_go_round():
    everyone = [("a", seen(1, 2))] * 5
    assert gpus.choose(everyone, share=True) == [0, 1, 0, 1, 0]


def test_a_gpu_is_known_by_its_number_across_containers():
    one = Gpu("0000:01:00.0", "ab" * 16)
    part, other = Gpu("0000:01:00.0", "cd" * 16), Gpu("0000:02:00.0", "ab" * 16)
    assert gpus.identity("a", one) == gpus.identity("b", one)
    assert gpus.identity("a", one) != gpus.identity("a", part)
    assert gpus.identity("a", one) != gpus.identity("a", other)


def test_ranks_agree_on_their_devices(stand_in):
    def own(share, device="gpu"):
        return Simulated(2).run(lambda c: gpus.own(c, device, share))

    assert own(share=True) == ["cuda:0"] * 2 and own(False, "cpu") == ["cpu"] * 2
    assert Simulated(2).run(lambda c: c.place("gpu")) == ["cuda:0"] * 2  # one process
    said = r"rank 1 on host \S+ would share a GPU: the 1 that it sees \(0000:00:00.0\) "
    with pytest.raises(DistributedError, match=said + "are taken by rank 0; start one"):
        own(share=False)


def test_a_rank_computes_on_the_gpu_that_it_takes(stand_in):
    """Also what says no more than "cuda", and with no context around it."""

    def train(c):
        device = gpus.own(c, "auto", False)
        model = nn.Linear(3, 2).to(device)
        x = md.randn(4, 3, device="cuda")
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        loss = F.cross_entropy(model(x).relu() + 1, md.tensor([0, 1, 1, 0]).to(device))
        loss.backward()
        optimizer.step()
        return device, x.device, loss.device, model.weight.grad.device

    stand_in.remove()
    stand_in.install(devices=2)
    assert Simulated(2).run(train) == [("cuda:0",) * 4, ("cuda:1",) * 4]
    assert distributed.Alone().place("cuda:1") == md.zeros(1, device="cuda").device


def test_a_rank_without_a_gpu_is_named_on_all(stand_in, monkeypatch):
    def missing(device):
        if distributed.init().rank == 1:
            raise DeviceError("there is no GPU")
        return "cuda:0"

    def place(c):
        kind = DeviceError if c.rank == 1 else DistributedError
        with pytest.raises(kind, match="there is no GPU") as caught:
            gpus.own(c, "gpu", False)
        return str(caught.value)

    monkeypatch.setattr(gpus, "canonical_device", missing)
    zero, one = Simulated(2).run(place)
    assert zero.startswith("rank 1 on host") and one == "there is no GPU"
    monkeypatch.setattr(gpus, "canonical_device", lambda device: device)
    with pytest.raises(DistributedError, match="rank 0 on host .* compute on its CPU"):
        Simulated(2).run(lambda c: gpus.own(c, ("cpu", "cuda:0")[c.rank], False))


def told(bus=1, nccl=22809, aware=False, host="a"):
    return Report(host, *seen(bus), nccl, aware)


@pytest.mark.parametrize(
    "reports, wanted, share, expected",
    [
        ([told(1), told(2)], None, False, "nccl"),
        ([told(1), told(2)], "mpi", False, "staged"),
        ([told(1, aware=True), told(2, aware=True)], "mpi", False, "direct"),
        ([told(1, aware=True), told(2)], "mpi", False, "staged"),
        ([told(1), told(2, nccl=0)], None, False, "staged"),
        ([told(1), told(1)], None, True, "staged"),
        ([told(1, 23003), told(1, 23003)], None, True, "staged"),
        ([told(1, 23003), told(1, 23003)], "nccl", True, "nccl"),
        ([told(1), told(1, host="b")], None, False, "nccl"),
        ([told()], "nccl", False, "nccl"),
    ],
)
def test_the_way_of_arrays_on_gpus(reports, wanted, share, expected):
    assert gpus.way(reports, wanted, share) == expected


def test_a_way_that_is_not_there_is_refused():
    with pytest.raises(
        DistributedError, match="rank 0 and rank 1 both use GPU 0000:01"
    ):
        gpus.way([told(1), told(1)], None, False)
    with pytest.raises(DependencyError, match="rank 1 on host a has no NCCL"):
        gpus.way([told(1), told(2, nccl=0)], "nccl", False)
    with pytest.raises(DistributedError, match="22809 .* no two ranks on one GPU"):
        gpus.way([told(1), told(1)], "nccl", True)
    with pytest.raises(DistributedError, match="rank 1 on a has 22704"):
        gpus.way([told(1), told(2, nccl=22704)], None, False)
