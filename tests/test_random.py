"""Philox against its published answers, and the distributions made of it."""

import threading

import numpy
import pytest

from minidl.array import loops, philox, random
from minidl.array.device import to_numpy
from minidl.array.random import (
    Generator,
    bernoulli,
    integers,
    key,
    normal,
    permutation,
    uniform,
)

SIZE = 50_000


def device(xp):
    return "cpu" if xp is numpy else "cuda"


all_words = philox.drawn("test_words", "w x y z", "", "w = a; x = b; y = c; z = d;")


def words(xp, counter, seed):
    """Philox's four words for a counter of four words and a key of two."""
    out = tuple(xp.empty(1, xp.uint32) for _ in range(4))
    all_words(
        out=out,
        start=counter[0] | counter[1] << 32,
        draw=counter[2] | counter[3] << 32,
        seed=seed[0] | seed[1] << 32,
    )
    return [int(word[0]) for word in out]


@pytest.mark.parametrize(
    "counter, seed, answer",
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(xp, counter, seed, answer):
    counter, seed, answer = (
        [int(word, 16) for word in text.split()] for text in (counter, seed, answer)
    )
    assert words(xp, counter, seed) == answer


def by_hand(seed, draw, n):
    """Philox4x32-10 in Python's integers: words of elements 0 to n - 1."""
    for index in range(n):
        c = [index, 0, draw & 0xFFFFFFFF, draw >> 32]
        k = [seed & 0xFFFFFFFF, seed >> 32]
        for _ in range(10):
            a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [b >> 32 ^ c[1] ^ k[0], b % 2**32, a >> 32 ^ c[3] ^ k[1], a % 2**32]
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        yield c


def test_the_numbers_are_made_of_the_words(xp):
    seed = key("a", 1)
    word = numpy.array(list(by_hand(seed, 0, 200)), dtype=numpy.uint64).T
    both = word[1] << numpy.uint64(32) | word[0]
    where = {"device": device(xp)}
    got = to_numpy(uniform(200, generator=Generator(seed), **where))
    assert got.tolist() == ((both >> numpy.uint64(40)) / 2.0**24).tolist()
    got = to_numpy(uniform(200, -2, 3, "f8", generator=Generator(seed), **where))
    assert got.tolist() == (-2 + 5 * ((both >> numpy.uint64(11)) / 2.0**53)).tolist()
    got = integers(-7, 12, 200, generator=Generator(seed), **where)
    assert got.tolist() == [-7 + (19 * int(w) >> 64) for w in both]
    got = bernoulli(200, 0.25, "f4", generator=Generator(seed), **where)
    assert got.tolist() == [float(w < 2**30) for w in word.T.reshape(-1)[:200]]
    got = permutation(200, generator=Generator(seed), **where)
    assert got.tolist() == numpy.argsort(both).tolist()
    u, v = (word[0] + 0.5) / 2.0**32, word[1] / 2.0**32
    expected = 3 + 2 * numpy.sqrt(-2 * numpy.log(u)) * numpy.cos(2 * numpy.pi * v)
    got = to_numpy(normal(200, 3, 2, generator=Generator(seed), **where))
    numpy.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def test_compiled_and_numpy_give_the_same_bits():
    kernel = philox.random_bits
    got = kernel(out=numpy.empty(SIZE * 2, "u8"), seed=5, draw=6, start=7, shift=0)
    loop = loops.NumpyLoop(kernel.body, numpy.dtype("u8"), {"y": numpy.dtype("u8")})
    expected = numpy.empty_like(got)
    loop(got.size, [expected], [5, 6, 7, 0])
    assert (got == expected).all()


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_uniform(xp, dtype):
    x = uniform((SIZE // 50, 50), -1, 3, dtype, device(xp), Generator(1))
    assert x.dtype == dtype and x.shape == (SIZE // 50, 50)
    x = to_numpy(x).astype("f8")
    assert -1 <= x.min() and x.max() < 3
    assert abs(x.mean() - 1) < 0.03 and abs(x.var() - 16 / 12) < 0.03


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_normal(xp, dtype):
    x = to_numpy(normal(SIZE, 2, 3, dtype, device(xp), Generator(1))).astype("f8")
    z = (x - 2) / 3
    assert abs(z.mean()) < 0.02 and abs(z.var() - 1) < 0.03
    assert abs((z**3).mean()) < 0.05 and abs((z**4).mean() - 3) < 0.15


def test_integers_and_permutation():
    x = integers(-2, 3, SIZE, generator=Generator(1))
    share = numpy.bincount(x + 2) / SIZE
    assert share.size == 5 and abs(share - 0.2).max() < 0.01
    assert sorted(permutation(100, generator=Generator(2))) == list(range(100))
    for low, high in [(1, 1), (3, 2), (0, 2**32 + 1)]:
        with pytest.raises(ValueError, match="0 < high - low"):
            integers(low, high, 3)


def test_bernoulli_at_the_ends():
    assert not bernoulli(1000, 0).any() and bernoulli(1000, 1).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        bernoulli(3, 1.5)


def test_draws_differ_and_the_state_restores_them():
    generator = Generator(3)
    first = uniform(10, generator=generator)
    state = generator.state
    second = uniform(10, generator=generator)
    generator.state = state
    assert state == (3, 1) and (first != second).any()
    assert (uniform(10, generator=generator) == second).all()


def test_a_shape_starts_with_the_numbers_of_a_shorter_one():
    whole, part = (uniform(n, generator=Generator(4)) for n in (SIZE, 100))
    assert (whole[:100] == part).all()


def test_scalars_may_live_in_arrays(xp):
    y = xp.empty(9, xp.uint64)
    seed, draw = xp.asarray([5], xp.uint64), xp.asarray([6], xp.uint64)
    philox.random_bits(out=y, seed=seed, draw=draw, start=0, shift=0)
    z = xp.empty(9, xp.uint64)
    philox.random_bits(out=z, seed=5, draw=6, start=0, shift=0)
    assert bool((y == z).all())


def test_keys_tell_names_apart():
    names = [("a", "b"), ("ab",), ("a", 1), ("a", "1"), (1,), ("b", "a"), ()]
    assert len({key(*name) for name in names}) == len(names)
    assert key(0, "conv1.weight") == key(0, "conv1.weight")
    assert all(0 <= key(*name) < 2**64 for name in names)


def test_each_thread_has_its_own_generator():
    def rank():
        random.manual_seed(7)
        results.append(uniform(5).tolist())

    results = []
    random.manual_seed(7)
    uniform(3)
    threads = [threading.Thread(target=rank) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == uniform(5, generator=Generator(7)).tolist()
    assert random.default_generator().state == (7, 1)


def test_seeds():
    assert Generator(-1).seed == 2**64 - 1 == Generator(2**64 - 1).seed
    for wrong, error in [(2**64, ValueError), (1.5, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="a seed"):
            Generator(wrong)
