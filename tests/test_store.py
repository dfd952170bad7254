"""Checkpoints on disk: what is read is what was written, or nothing is."""

import math
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minidl import Tensor
from minidl.array.errors import CheckpointError
from minidl.train.files import OutputError
from minidl.train.store import Store, read

DTYPES = ["float16", "float32", "float64", "int64", "uint8", "bool"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | arrays
names = st.text(max_size=8).filter(lambda name: name != "array")
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=8,
)


def alike(a, b) -> bool:
    """Whether two states are the same to the last bit, types included."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and repr(a) == repr(b)


@given(states)
def test_what_is_read_is_what_was_saved(state):
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory, "checkpoints"))
        path = store.save(7, {"state": state})
        assert alike(read(path)["state"], state)
        assert alike(read(path.with_suffix(".safetensors"))["state"], state)
        assert alike(store.latest(pytest.fail)[1]["state"], state)


def test_tensors_and_tuples_become_arrays_and_lists(tmp_path):
    strided = np.arange(12.0).reshape(3, 4).T
    path = Store(tmp_path).save(1, {"t": Tensor(strided), "pair": (1, 0.5)})
    state = read(path)
    assert np.array_equal(state["t"], strided) and state["pair"] == [1, 0.5]


def test_what_json_cannot_say_is_refused(tmp_path):
    for state in ({1: 2}, {"array": 3}, {"f": print}):
        with pytest.raises(TypeError):
            Store(tmp_path).save(1, {"state": state})
        assert list(tmp_path.iterdir()) == []


STATE = {"weights": np.arange(50.0), "step": 3, "nested": [{"lr": 0.1}]}


@given(data=st.data(), suffix=st.sampled_from([".json", ".safetensors"]))
def test_damage_is_seen_wherever_it_is(data, suffix):
    with tempfile.TemporaryDirectory() as directory:
        path = Store(Path(directory)).save(1, STATE).with_suffix(suffix)
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["cut", "flip", "insert"]))
        if how == "cut":
            del content[place:]
        elif how == "flip":
            content[place] ^= data.draw(st.integers(1, 255))
        else:
            content.insert(place, data.draw(st.integers(0, 255)))
        path.write_bytes(content)
        try:
            state = read(path)
        except CheckpointError as error:
            assert path.stem in str(error) and "\n" not in str(error)
        else:
            assert suffix == ".json" and alike(state, STATE)  # other spaces


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.unlink(), "cannot read the checkpoint"),
        (
            lambda path: path.with_suffix(".safetensors").unlink(),
            "cannot read the checkpoint .*safetensors: No such file",
        ),
        (lambda path: path.write_text("{"), "damaged: it is no whole JSON file"),
        (lambda path: path.write_text("{}"), 'it lacks "format"'),
        (
            lambda path: path.write_text(path.read_text().replace("0.1", "0.2")),
            "is damaged: its content is not what its checksum was taken of",
        ),
        (
            lambda path: path.with_suffix(".safetensors").write_bytes(
                pickle.dumps(os.getcwd)
            ),
            r"safetensors is damaged: its \d+ bytes are not those",
        ),
    ],
    ids=["gone", "no arrays", "torn", "another's", "tampered", "a pickle"],
)
def test_each_kind_of_damage_has_its_sentence(tmp_path, damage, words):
    path = Store(tmp_path).save(1, STATE)
    damage(path)
    with pytest.raises(CheckpointError, match=words):
        read(path)


def test_the_last_that_is_whole_is_used(tmp_path):
    store, said = Store(tmp_path), []
    assert store.latest(said.append) is None
    paths = [store.save(step, STATE | {"step": step}) for step in (5, 10, 100_000_000)]
    assert store.latest(said.append)[1]["step"] == 100_000_000 and not said
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    paths[1].with_suffix(".safetensors").write_bytes(b"")
    path, state = Store(tmp_path).latest(said.append)
    assert (path, state["step"]) == (paths[0], 5)
    assert paths[2].name in said[0] and paths[1].stem in said[1]
    paths[0].unlink()
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        Store(tmp_path).latest(said.append)


def names_in(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def both(*steps) -> list[str]:
    suffixes = ("json", "safetensors")
    return [f"step-{s:08d}.{suffix}" for s in steps for suffix in suffixes]


def test_the_last_k_of_this_training_are_kept(tmp_path):
    store = Store(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, STATE)
    assert names_in(tmp_path) == both(2, 3)
    (tmp_path / ".step-00000004.json.x.part").write_text("torn")
    other = Store(tmp_path, keep=2)  # another training: those before go with its first
    assert names_in(tmp_path)[1:] == both(2, 3)
    other.save(1, STATE)
    assert names_in(tmp_path) == both(1)


def test_a_resumed_training_keeps_those_before_it(tmp_path):
    store = Store(tmp_path, keep=3)
    paths = [store.save(step, STATE) for step in (10, 20, 30)]
    store = Store(tmp_path, keep=3)
    store.adopt(paths[1])
    store.save(25, STATE)
    assert names_in(tmp_path) == both(10, 20, 25)
    store.save(20, STATE | {"step": 4})  # again
    assert names_in(tmp_path) == both(10, 20) and read(paths[1])["step"] == 4


@pytest.mark.parametrize("fatal", range(1, 3))
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("step", [2, 3])
def test_a_save_that_fails_leaves_those_before(
    tmp_path, monkeypatch, call, fatal, step
):
    store = Store(tmp_path)
    for before in (1, 2):
        store.save(before, STATE | {"step": before})
    done, real = [], getattr(os, call)

    def fail(*arguments):
        done.append(call)
        if len(done) == fatal:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match="No space left on device"):
        store.save(step, STATE | {"step": 9})
    assert store.latest(pytest.fail)[1]["step"] == step - 1
    assert not list(tmp_path.glob(".*"))
