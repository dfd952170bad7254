"""A function as a CUDA graph: draws, failures, memory."""

import pytest

import minidl as md
from minidl.array import random
from minidl.array.device import gpu_available
from minidl.array.errors import CaptureError
from minidl.array.graph import Graph, rehearsal


def test_draws_go_on_from_replay_to_replay(stand_in):
    wanted = random.Generator(5)
    want = [random.uniform(4, device="cuda", generator=wanted).get() for _ in range(9)]
    generator = random.Generator(5)

    def draw():
        return [random.uniform(4, device="cuda", generator=generator) for _ in "abc"]

    with rehearsal():
        draw()
    generator.manual_seed(5)
    graph = Graph(draw)
    assert generator.state == (5, 0)
    got = [x.get() for _ in range(2) for x in graph.replay()]
    assert generator.state == (5, 6)
    generator.state = (5, 8)  # as after draws elsewhere
    got += [x.get() for x in graph.replay()]
    want = [*want[:6], want[8]]
    assert all((a == b).all() for a, b in zip(got, want, strict=False))


def test_a_failed_recording_leaves_everything_usable(stand_in):
    x, generator = md.ones(3, device="cuda"), random.Generator(1)

    def wrong():
        random.uniform(3, device="cuda", generator=generator)
        x.data[...] = 2
        return x.data.sum().item()

    with pytest.raises(CaptureError, match="so loading kernel .* is disallowed"):
        Graph(wrong)  # not rehearsed
    with rehearsal():
        random.uniform(3, device="cuda")
    with pytest.raises(CaptureError, match="wrong|item"):
        Graph(wrong)
    assert generator.state == (1, 0) and x.tolist() == [1, 1, 1]
    graph = Graph(lambda: x.data * 2)
    x.data[...] = 4
    assert graph.replay().tolist() == [8, 8, 8]
    graph.close()
    assert not graph.companions and graph.result is None


def test_too_many_draws_are_refused(stand_in):
    generator = random.Generator(1)

    def draw():
        for _ in range(4097):
            generator.next()

    with pytest.raises(CaptureError, match="over 4096 times"):
        Graph(draw)
    assert generator.state == (1, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_available(), reason="no CUDA device")
def test_draws_that_follow_what_comes_and_goes():
    """An array freed while recording may lie where a later one does."""
    x, generator = md.ones(10_000, device="cuda").data, random.Generator(3)

    def draw():
        y = (x * 2 + x) * 3  # more memory than the draws' numbers take
        del y
        return random.uniform(4, device="cuda", generator=generator)

    want = [draw().get() for _ in range(3)]
    generator.manual_seed(3)
    with rehearsal():
        draw()
    graph = Graph(draw)
    assert all((graph.replay().get() == wanted).all() for wanted in want[1:])
