"""Datasets by name: images as they are stored, with their labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minidl.array.errors import DataError, UsageError
from minidl.data.download import download
from minidl.data.idx import read_images, read_labels

DIGITS = tuple("0123456789")
CLASSES = {
    "digits": DIGITS,
    "mnist": DIGITS,
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# where torchvision keeps a dataset's files below the directory it is given
TORCHVISION = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images (N, C, H, W) and labels (N,), integers that index `classes`.

    Raises DataError where images and labels do not go together.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = DIGITS
    name: str = "dataset"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        for part in (images, labels):
            if not hasattr(part, "dtype"):
                raise TypeError(
                    f"{self.name}: images and labels are arrays, "
                    f"got {type(part).__name__}: np.asarray makes one"
                )
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise DataError(
                f"{self.name}: labels should be integers of shape (N,), "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        if images.ndim < 2 or len(images) != len(labels):
            raise DataError(
                f"{self.name}: images of shape {images.shape} do not go with "
                f"{len(labels)} labels"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise DataError(
                f"{self.name}: labels should be 0 to {len(self.classes) - 1}, "
                f"got {labels.min()} to {labels.max()}: `classes` names them all"
            )

    def __repr__(self) -> str:
        images = f"{len(self)} of {self.images.shape[1:]} {self.images.dtype}"
        return f"Dataset({self.name!r}, {images}, {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> tuple[np.ndarray, np.ndarray]:
        """The image and label at `index`, or those of a slice or index array."""
        return self.images[index], self.labels[index]


def load(name: str, directory: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """The training and test set of `digits`, `mnist` or `fashion_mnist`.

    digits: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits",
    UCI, 1998, doi.org/10.24432/C50P49, CC BY 4.0; inside the package (digits.md).
    The others: the four IDX files, gzip or plain, of `directory` (or of MNIST/raw,
    FashionMNIST/raw or raw below it); without one from the cache directory
    (`MINIDL_DATA_DIR`), into which they are downloaded once.

    Raises DataError, in one sentence, for an unknown name and for files that are
    missing, damaged, or do not belong together.
    """
    if name not in CLASSES:
        raise DataError(f"unknown dataset {name!r}: known are {', '.join(CLASSES)}")
    if name == "digits":
        if directory is not None:
            raise UsageError(
                f"digits is inside the package and is not read from {directory}; "
                "mnist and fashion_mnist are"
            )
        return _digits()
    if directory is None:
        cache = download(name)
        paths = {stem: cache / f"{stem}.gz" for stem in sum(FILES.values(), ())}
    else:
        try:
            paths = _find(name, Path(directory))
        except OSError as error:  # no permission to look, for one
            raise DataError(
                f"the data directory {directory} cannot be read: {error.strerror}"
            ) from None
    train = _read_pair(name, *(paths[stem] for stem in FILES["train"]))
    test = _read_pair(name, *(paths[stem] for stem in FILES["test"]))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{paths[FILES['train'][0]]} holds images of {train.images.shape[2:]} "
            f"pixels, but {paths[FILES['test'][0]]} of {test.images.shape[2:]}"
        )
    return train, test


def _digits() -> tuple[Dataset, Dataset]:
    here = Path(__file__).parent
    every = _read_pair(
        "digits",
        here / "digits-images-idx3-ubyte.gz",
        here / "digits-labels-idx1-ubyte.gz",
    )
    # every fifth image in the order of the digits: a fifth of each class
    chosen = np.zeros(len(every), dtype=bool)
    chosen[np.argsort(every.labels, kind="stable")[::5]] = True
    return tuple(
        Dataset(*every[part], every.classes, "digits") for part in (~chosen, chosen)
    )


def _read_pair(name: str, images_path: Path, labels_path: Path) -> Dataset:
    images = read_images(images_path)
    labels = read_labels(labels_path, len(CLASSES[name]))
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} holds {len(images)} images, "
            f"but {labels_path} {len(labels)} labels"
        )
    return Dataset(images, labels, CLASSES[name], name)


def _find(name: str, directory: Path) -> dict[str, Path]:
    """The file of each of the four names, all of them in one folder."""
    if not directory.is_dir():
        raise DataError(f"the data directory {directory} does not exist")
    stems = sum(FILES.values(), ())
    for folder in (directory, directory / TORCHVISION[name], directory / "raw"):
        found = {}
        for stem in stems:
            for path in (folder / stem, folder / f"{stem}.gz"):
                if path.is_file():
                    found.setdefault(stem, path)
        if found:
            break
    missing = [stem for stem in stems if stem not in found]
    if missing:
        where = folder if found else directory
        raise DataError(f"{where} holds no {', '.join(missing)} (nor with .gz)")
    return found
