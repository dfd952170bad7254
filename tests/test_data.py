"""Files become minibatches: IDX, datasets, downloads, standardisation, sampling."""

import gzip
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidl import data
from minidl.array.device import gpu_available
from minidl.array.errors import CheckpointError, DataError, UsageError
from minidl.array.sampling import share
from minidl.autograd import Tensor
from minidl.data import DataLoader, Dataset, Sampler, Standardize, load
from minidl.data import download as downloads
from minidl.data.idx import read_idx, read_images, read_labels

STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
ROOT = Path(__file__).resolve().parents[1]
MNIST = (ROOT / "../shared/data/mnist", ROOT / "../../shared/data/mnist")


def idx(array, kind=8):
    """The bytes of an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


def some_files(train=30, test=12, side=4, seed=0):
    """The four files of a small dataset, by name, not compressed."""
    rng = np.random.default_rng(seed)

    def pair(n):
        yield idx(rng.integers(0, 256, (n, side, side), dtype=np.uint8))
        yield idx((np.arange(n) % 10).astype(np.uint8))

    return dict(zip(STEMS, (*pair(train), *pair(test)), strict=True))


def write_files(directory, files, suffix=""):
    directory.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        (directory / f"{stem}{suffix}").write_bytes(content)
    return directory


# --- IDX files ---------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_is_read_by_content(tmp_path, pack):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "no-particular-name"
    path.write_bytes(pack(idx(images)))
    np.testing.assert_array_equal(read_images(path), images[:, None])
    assert read_images(path).dtype == np.uint8
    path.write_bytes(pack(idx(np.array([3, 1, 9], np.uint8))))
    labels = read_labels(path)
    assert labels.tolist() == [3, 1, 9] and labels.dtype == np.int64


IMAGES = idx(np.zeros((3, 2, 2), np.uint8))
LABELS = idx(np.array([0, 9, 1], np.uint8))
# without the time, for tests are named by these bytes, in every process alike
PACKED = gzip.compress(IMAGES, mtime=0)


def damaged_gzip(position):
    packed = bytearray(PACKED)
    packed[position] ^= 0xFF
    return bytes(packed)


@pytest.mark.parametrize(
    "read, content, fault",
    [
        (read_images, None, "does not exist"),
        (read_images, b"", "truncated: 0 bytes"),
        (read_images, IMAGES[:7], "ends within the header, after 7 of 16 bytes"),
        (read_images, IMAGES[:-1], "truncated: 11 values, .* promises 12"),
        (read_images, IMAGES + b"xy", "2 bytes after the 12 values"),
        (read_images, b"<html>404</html>", "not an IDX file: .* 3c 68 74 6d"),
        (read_images, b"\0\0\x42\x01", "not an IDX file"),
        (read_images, idx(np.zeros((3, 2), np.int32), 0x0C), "32-bit integers .*0x0c"),
        (read_images, idx(np.zeros((0, 2, 2), np.uint8)), "empty"),
        (read_images, b"\0\0\x08\x03" + b"\xff" * 12, "truncated: 0 values"),
        (read_images, LABELS, "3 dimensions .*, but has 1"),
        (read_labels, IMAGES, "1 dimension, but has 3"),
        (read_labels, idx(np.array([0, 9, 10], np.uint8)), "label 10 at position 2"),
        (read_images, PACKED[:-9], "truncated: the gzip"),
        (read_images, PACKED[:3], "truncated: the gzip"),
        (read_images, damaged_gzip(-5), "corrupt: gzip says CRC"),
        (read_images, damaged_gzip(12), "corrupt: gzip says|truncated"),
        (read_images, PACKED + b"rest", "corrupt: gzip says"),
        (read_images, gzip.compress(IMAGES[:-1], mtime=0), "truncated: 11 values"),
    ],
)
def test_a_damaged_file_gets_one_sentence(tmp_path, read, content, fault):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=fault) as error:
        read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_directory_is_not_a_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_idx(tmp_path)


def test_a_directory_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # root is never refused
    with pytest.raises(DataError, match=f"{tmp_path} cannot be read: Permission"):
        load("mnist", tmp_path)


@given(st.binary(max_size=80), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content, header):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(b"\0\0\x08" + content if header else content)
    try:
        assert read_idx(path).size > 0
    except DataError as error:
        assert str(path) in str(error)


# --- datasets ----------------------------------------------------------------


def test_digits():
    train, test = load("digits")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape == (1437, 1, 8, 8) and train.images.dtype == np.uint8
    assert test.labels.shape == (360,) and test.labels.dtype == np.int64
    assert train.classes == tuple("0123456789") and test.name == "digits"
    # the sum of all pixels and the class sizes, from the original text table
    both = np.concatenate([train.images, test.images])
    assert both.max() == 16 and both.sum(dtype=np.int64) == 561_718
    in_test = np.bincount(test.labels)
    in_all = np.bincount(train.labels) + in_test
    assert in_all.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.all(np.abs(in_test - in_all / 5) < 1)  # stratified
    for part, md5 in (
        (train, "e46e33b3eab4d410a36c90c94f42b96b"),
        (test, "091d3f41b849d1e619750e92de4e138f"),
    ):  # and fixed
        content = part.images.tobytes() + part.labels.astype("<i8").tobytes()
        assert hashlib.md5(content).hexdigest() == md5
    package = Path(data.__file__).parent
    assert sum(file.stat().st_size for file in package.glob("digits*")) < 100_000
    assert "CC BY 4.0" in (package / "digits.md").read_text()


@pytest.mark.parametrize("folder", ["", "MNIST/raw", "raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_from_a_directory(tmp_path, folder, suffix):
    files = some_files()
    packed = {stem: gzip.compress(c) if suffix else c for stem, c in files.items()}
    write_files(tmp_path / folder, packed, suffix)
    train, test = load("mnist", tmp_path)
    assert train.images.shape == (30, 1, 4, 4) and len(test) == 12
    assert train.images.tobytes() == files[STEMS[0]][16:]
    assert test.labels.tolist() == list(files[STEMS[3]][8:])


def test_fashion_mnist_from_a_directory(tmp_path):
    write_files(tmp_path / "FashionMNIST" / "raw", some_files())
    train, _ = load("fashion_mnist", str(tmp_path))
    assert train.name == "fashion_mnist" and train.classes[9] == "Ankle boot"


def test_real_mnist():
    directory = next((path for path in MNIST if path.is_dir()), None)
    if directory is None:
        pytest.skip("MNIST is not at ../shared/data/mnist")
    train, test = load("mnist", directory)
    assert train.images.shape == (60000, 1, 28, 28) and len(test) == 10000
    md5 = {  # of the whole files, decompressed
        "6bbc9ace898e44ae57da46a324031adb": idx(train.images[:, 0]),
        "a25bea736e30d166cdddb491f175f624": idx(train.labels.astype(np.uint8)),
        "2646ac647ad5339dbf082846283269ea": idx(test.images[:, 0]),
        "27ae3e4e09519cfbb04c329615203637": idx(test.labels.astype(np.uint8)),
    }
    assert all(hashlib.md5(content).hexdigest() == key for key, content in md5.items())
    standardize = Standardize().fit(train.images)  # the numbers everyone knows
    np.testing.assert_allclose(standardize.mean / 255, 0.1307, atol=5e-5)
    np.testing.assert_allclose(standardize.std / 255, 0.3081, atol=5e-5)


def test_bad_datasets_get_one_sentence(tmp_path):
    with pytest.raises(DataError, match="'cifar'.* digits, mnist, fashion_mnist"):
        load("cifar")
    with pytest.raises(UsageError, match="inside the package"):
        load("digits", tmp_path)
    with pytest.raises(DataError, match="nowhere does not exist"):
        load("mnist", tmp_path / "nowhere")
    with pytest.raises(DataError, match=f"holds no {', '.join(STEMS)}"):
        load("mnist", tmp_path)
    write_files(tmp_path, some_files())
    (tmp_path / STEMS[1]).unlink()
    with pytest.raises(DataError, match=f"holds no {STEMS[1]} "):
        load("mnist", tmp_path)
    write_files(tmp_path, some_files() | {STEMS[1]: LABELS})
    with pytest.raises(DataError, match="holds 30 images, but .* 3 labels"):
        load("mnist", tmp_path)
    write_files(tmp_path, some_files() | {STEMS[2]: some_files(side=5)[STEMS[2]]})
    with pytest.raises(DataError, match=r"of \(4, 4\) pixels, but .* of \(5, 5\)"):
        load("mnist", tmp_path)


def test_bad_arrays_get_one_sentence():
    images = np.zeros((4, 1, 2, 2), np.uint8)
    with pytest.raises(TypeError, match="labels are arrays, got list"):
        Dataset(images, [0, 1, 2, 3])
    with pytest.raises(TypeError, match="batches of a Dataset.* got ndarray"):
        DataLoader(images, 2)
    with pytest.raises(DataError, match="do not go with 3 labels"):
        Dataset(images, np.zeros(3, np.int64))
    with pytest.raises(DataError, match="integers of shape"):
        Dataset(images, np.zeros(4))
    with pytest.raises(DataError, match="0 to 9, got -1 to 0"):
        Dataset(images, np.array([0, 0, -1, 0]))
    whole = Dataset(images, np.arange(4))
    assert repr(whole) == "Dataset('dataset', 4 of (1, 2, 2) uint8, 10 classes)"
    picked, labels = whole[[2, 0]]
    assert picked.shape == (2, 1, 2, 2) and labels.tolist() == [2, 0]


# --- downloads ---------------------------------------------------------------


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `files` below /good/, and the same with a fault below other paths."""

    files: dict[str, bytes] = {}
    asked: list[str] = []
    test_is_over: threading.Event

    def do_GET(self):
        _, fault, name = self.path.split("/")
        type(self).asked.append(self.path)
        content = self.files[name]
        if fault == "missing":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "wrong":
            content = bytes(len(content))
        if fault == "dropped":
            content = content[: len(content) // 2]
        if fault == "stalled":
            self.wfile.write(content[:9])
            self.test_is_over.wait(20)
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror on this machine and an empty cache directory: mirror(*faults)."""
    files = {f"{stem}.gz": gzip.compress(c) for stem, c in some_files().items()}
    over = threading.Event()
    handler = type(
        "Handler", (Mirror,), {"files": files, "asked": [], "test_is_over": over}
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_port}"

        def use(*faults):
            urls = tuple(f"{url}/{fault}/" for fault in faults)
            monkeypatch.setitem(downloads.MIRRORS, "mnist", urls)
            return handler.asked

        md5 = {
            name: hashlib.md5(content).hexdigest() for name, content in files.items()
        }
        monkeypatch.setitem(downloads.MD5, "mnist", md5)
        monkeypatch.setenv("MINIDL_DATA_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield use
        over.set()
        server.shutdown()


def cached(tmp_path):
    return sorted(
        path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()
    )


def test_a_dataset_is_downloaded_once(tmp_path, mirror):
    asked = mirror("good")
    train, test = load("mnist")
    assert (len(train), len(test)) == (30, 12) and len(asked) == 4
    assert cached(tmp_path) == sorted([*(f"{stem}.gz" for stem in STEMS), "lock"])
    again, _ = load("mnist")
    assert len(asked) == 4
    np.testing.assert_array_equal(again.images, train.images)


@pytest.mark.parametrize("fault", ["missing", "wrong", "dropped"])
def test_the_next_mirror_is_tried(tmp_path, mirror, fault):
    mirror(fault, "good")
    assert len(load("mnist")[0]) == 30


@pytest.mark.parametrize(
    "fault, reason",
    [
        ("missing", "HTTP Error 404"),
        ("wrong", "MD5 .* expected"),
        ("dropped", "more exp"),
    ],
)
def test_no_mirror_left(tmp_path, mirror, fault, reason):
    mirror(fault)
    with pytest.raises(DataError, match=reason) as error:
        load("mnist")
    message = str(error.value)
    assert f"/{fault}/train-images" in message and "--data DIR" in message
    assert "\n" not in message
    assert cached(tmp_path) == ["lock"]  # nothing that is mistaken for data


def test_no_network(tmp_path, mirror, monkeypatch):
    monkeypatch.setitem(downloads.MIRRORS, "mnist", ("http://127.0.0.1:1/",))
    with pytest.raises(DataError, match="127.0.0.1:1/train.*refused.*--data DIR"):
        load("mnist")


def test_a_damaged_cache_is_downloaded_again(tmp_path, mirror):
    asked = mirror("good")
    load("mnist")
    damaged = tmp_path / "cache" / "mnist" / f"{STEMS[0]}.gz"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert len(load("mnist")[0]) == 30 and len(asked) == 5


def test_an_interrupted_download_leaves_nothing(tmp_path, mirror, monkeypatch):
    mirror("good")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert cached(tmp_path) == ["lock"]


def test_an_unwritable_cache(tmp_path, mirror, monkeypatch):
    mirror("good")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIDL_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written.*MINIDL_DATA_DIR"):
        load("mnist")


def loading_process():
    """A process that loads MNIST from the mirrors of this test."""
    program = (
        "import json, sys; from minidl.data import load, download as d;"
        "d.MIRRORS['mnist'], d.MD5['mnist'] = json.load(sys.stdin); load('mnist')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE
    )
    given = json.dumps([downloads.MIRRORS["mnist"], downloads.MD5["mnist"]])
    process.stdin.write(given.encode())
    process.stdin.close()
    return process


@pytest.mark.slow
def test_of_several_processes_one_downloads(mirror):
    asked = mirror("good")
    ranks = [loading_process() for _ in range(3)]
    assert [rank.wait(20) for rank in ranks] == [0, 0, 0]
    assert len(asked) == 4


def test_a_killed_download_leaves_nothing_and_no_lock(tmp_path, mirror):
    asked = mirror("stalled")
    rank = loading_process()
    deadline = time.monotonic() + 20
    while not asked and time.monotonic() < deadline:
        time.sleep(0.01)
    rank.kill()
    assert rank.wait(20) < 0 and asked and cached(tmp_path) == ["lock"]
    mirror("good")
    assert len(load("mnist")[0]) == 30


def test_the_cache_directory(monkeypatch):
    monkeypatch.delenv("MINIDL_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert downloads.cache_directory() == Path("/x/minidl/datasets")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(DataError, match="no home directory .*MINIDL_DATA_DIR"):
        load("mnist")


# --- Standardize -------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(1, 3),
    st.sampled_from([np.uint8, np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=30)
def test_standardize(n, channels, dtype, seed):
    images = np.random.default_rng(seed).uniform(0, 255, (n, channels, 5, 4))
    images = images.astype(dtype)
    wide = images.astype(np.float64)
    mean = wide.mean(axis=(0, 2, 3), keepdims=True)
    std = wide.std(axis=(0, 2, 3), keepdims=True)
    standardize = Standardize().fit(images)
    result = standardize(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (wide - mean) / std, atol=2e-6, rtol=1e-5)
    # a batch gets the same bits as the whole
    np.testing.assert_array_equal(standardize(images[n // 2 :]), result[n // 2 :])
    assert standardize(images[:0]).shape == (0, channels, 5, 4)


def test_standardize_fits_the_training_set_alone():
    train, test = load("digits")
    standardize = Standardize().fit(train.images)
    assert abs(standardize(train.images).mean(dtype=np.float64)) < 1e-7
    assert abs(standardize(train.images).std(dtype=np.float64) - 1) < 1e-6
    assert abs(standardize(test.images).mean(dtype=np.float64)) > 1e-4


@pytest.mark.parametrize("value", [0, 7, 0.1, 1e6])
def test_standardize_a_constant(value):
    images = np.full((3, 2, 4, 4), value, np.float32)
    images[:, 1] = np.arange(16).reshape(4, 4)
    standardize = Standardize().fit(images)
    assert standardize.std[0] == 1 and standardize.std[1] > 1
    assert np.abs(standardize(images)[:, 0]).max() < 1e-6


def test_standardize_state():
    images = np.random.default_rng(0).uniform(0, 9, (8, 3, 2, 2))
    fitted, loaded = Standardize().fit(images), Standardize()
    assert loaded.state_dict() == {}
    loaded.load_state_dict({k: v.tolist() for k, v in fitted.state_dict().items()})
    np.testing.assert_array_equal(loaded(images), fitted(images))
    for state in (
        {},
        {"mean": [1.0]},
        {"mean": ["x"], "std": [1]},
        {"mean": [0.0], "std": [0.0]},
        {"mean": [0.0], "std": [1.0, 1.0]},
        {"mean": [np.nan], "std": [1.0]},
    ):
        with pytest.raises(CheckpointError):
            loaded.load_state_dict(state)
    np.testing.assert_array_equal(loaded(images), fitted(images))  # as it was


def test_standardize_refuses():
    images = np.zeros((2, 3, 4, 4))
    with pytest.raises(RuntimeError, match="call fit first"):
        Standardize()(images)
    with pytest.raises(DataError, match="3 channels, got shape"):
        Standardize().fit(images)(images[:, :2])
    with pytest.raises(DataError, match="at least one"):
        Standardize().fit(images[:0])
    with pytest.raises(DataError, match="NaN"):
        Standardize().fit(images * np.nan)


# --- sampler -----------------------------------------------------------------

sizes = st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(1, 20)).filter(
    lambda size: size[1] <= min(size[0], size[2])
)


@given(sizes, st.booleans(), st.integers(0, 5), st.integers(0, 60), st.booleans())
@settings(deadline=None, max_examples=60)
def test_ranks_cut_the_same_global_batches(size, shuffle, epoch, position, drop_last):
    n, ranks, batch_size = size
    options = dict(shuffle=shuffle, seed=3, drop_last=drop_last)
    alone = Sampler(range(n), **options)
    alone.set_epoch(epoch)
    order = alone.order()
    assert sorted(order.tolist()) == list(range(n))
    position = min(position, n)
    parts = []
    for rank in range(ranks):
        sampler = Sampler(range(n), ranks, rank, **options)
        sampler.set_epoch(epoch, position)
        parts.append(list(sampler.batches(batch_size)))
        assert len(parts[-1]) == sampler.num_batches(batch_size)
    batches = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
    expected = [order[i : i + batch_size] for i in range(position, n, batch_size)]
    if drop_last:
        expected = [batch for batch in expected if len(batch) == batch_size]
    assert [b.tolist() for b in batches] == [b.tolist() for b in expected]
    for pieces in zip(*parts, strict=True):
        counts = [len(piece) for piece in pieces]
        assert max(counts) - min(counts) <= 1


@given(st.integers(0, 50), st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_shares_are_contiguous_and_near_equal(count, ranks):
    pieces = np.array_split(np.arange(count), ranks)
    for rank, piece in enumerate(pieces):
        np.testing.assert_array_equal(
            np.arange(count)[share(count, ranks, rank)], piece
        )


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = Sampler(range(1000), seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler.order().tolist())

    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len(dict.fromkeys(orders)) == 9
    assert order(1, 2) == order(1, 2)
    # every index comes first about equally often
    first = [order(seed, 0)[0] // 250 for seed in range(200)]
    assert np.bincount(first, minlength=4).min() > 25


def test_the_order_is_the_same_without_a_compiler():
    program = (
        "from minidl.data import Sampler as S;"
        "print(S(range(1000), seed=5).order().tolist())"
    )
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env=os.environ | {"MINIDL_COMPILER": "none"},
        capture_output=True,
        text=True,
    )
    expected = Sampler(range(1000), seed=5).order().tolist()
    assert output.stdout.strip() == str(expected), output.stderr


def test_sampler_refuses():
    with pytest.raises(UsageError, match="4 ranks cannot share 3 samples"):
        Sampler(range(3), 4, 0)
    with pytest.raises(UsageError, match="no samples"):
        Sampler([])
    for rank in (-1, 2):
        with pytest.raises(ValueError, match="rank should be"):
            Sampler(range(3), 2, rank)
    sampler = Sampler(range(9), 3, 0)
    for batch_size in (0, -1, 2.5, "8"):
        with pytest.raises(UsageError, match="positive integer"):
            sampler.num_batches(batch_size)
    with pytest.raises(UsageError, match="3 ranks without samples"):
        next(sampler.batches(2))
    for epoch, position in ((-1, 0), (0, -1), (0, 10)):
        with pytest.raises(ValueError, match="epoch should be"):
            sampler.set_epoch(epoch, position)


# --- loader ------------------------------------------------------------------


def test_loader_over_ranks_is_the_loader_alone():
    train, _ = load("digits")
    standardize = Standardize().fit(train.images)

    def batches(ranks, rank):
        sampler = Sampler(train, ranks, rank, seed=1)
        loader = DataLoader(train, 130, sampler=sampler, transform=standardize)
        assert len(loader) == 12  # 11 of 130 and one of 7
        return list(loader)

    whole = standardize(train.images)
    order = Sampler(train, seed=1).order()
    for ranks in (1, 3):
        parts = zip(*(batches(ranks, rank) for rank in range(ranks)), strict=True)
        for k, pieces in enumerate(parts):
            images, labels = (
                np.concatenate(piece) for piece in zip(*pieces, strict=True)
            )
            index = order[k * 130 : (k + 1) * 130]
            np.testing.assert_array_equal(images, whole[index])
            np.testing.assert_array_equal(labels, train.labels[index])
            assert images.dtype == np.float32 and labels.dtype == np.int64
            assert all(isinstance(x, Tensor) for x in pieces[0])


def test_an_empty_share_is_an_empty_batch():
    dataset = Dataset(np.ones((9, 1, 8, 8), np.uint8), np.arange(9) % 3)
    sampler = Sampler(dataset, 3, 2, shuffle=False)
    transform = Standardize().fit(dataset.images)
    loader = DataLoader(dataset, 4, sampler=sampler, transform=transform)
    shapes = [(images.shape, labels.shape) for images, labels in loader]
    assert shapes == [((1, 1, 8, 8), (1,)), ((1, 1, 8, 8), (1,)), ((0, 1, 8, 8), (0,))]


def test_each_pass_is_shuffled_anew_and_can_be_resumed():
    dataset = Dataset(np.zeros((10, 1, 1, 1)), np.arange(10))

    def labels(loader):
        return [batch.tolist() for _, batch in loader]

    loader = DataLoader(dataset, 4, shuffle=True, seed=2)
    first, second = labels(loader), labels(loader)
    assert first != second and sorted(sum(first, [])) == sorted(sum(second, []))
    loader.sampler.set_epoch(0)
    assert labels(loader) == first and labels(loader) == second
    loader.sampler.set_epoch(1, position=4)
    assert len(loader) == 2 and labels(loader) == second[1:]
    assert loader.sampler.epoch == 2 and len(loader) == 3
    assert labels(DataLoader(dataset, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(DataLoader(dataset, 4, drop_last=True)) == 2


def test_loader_refuses():
    dataset = Dataset(np.zeros((4, 1, 1, 1)), np.arange(4))
    with pytest.raises(UsageError, match="positive integer, got 0"):
        DataLoader(dataset, 0)
    with pytest.raises(ValueError, match="the sampler's"):
        DataLoader(dataset, 2, shuffle=True, sampler=Sampler(dataset))
    with pytest.raises(ValueError, match="for 5 samples, the dataset has 4"):
        DataLoader(dataset, 2, sampler=Sampler(range(5)))
    with pytest.raises(ValueError, match="moon"):
        DataLoader(dataset, 2, device="moon")


@pytest.mark.gpu
@pytest.mark.parametrize("pin_memory", [False, True])
def test_loader_on_a_gpu(pin_memory):
    if not gpu_available():
        pytest.skip("no CUDA device")
    train, _ = load("digits")
    transform = Standardize().fit(train.images)
    options = dict(shuffle=True, transform=transform)
    here = DataLoader(train, 500, **options)
    there = DataLoader(train, 500, device="cuda", pin_memory=pin_memory, **options)
    for (images, labels), (images2, labels2) in zip(here, there, strict=True):
        assert images2.device == labels2.device == there.device
        np.testing.assert_array_equal(images2.numpy(), images)
        np.testing.assert_array_equal(labels2.numpy(), labels)
