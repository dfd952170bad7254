"""What is done to images before the model sees them."""

import numpy as np

from minidl.array.device import array_module, device_of, to_device, use_device
from minidl.array.errors import CheckpointError, DataError
from minidl.array.kernel import Kernel

CHUNK = 1024  # images that are widened to float64 at a time
BODY = "y = (x - mean) / std;"
# images of one channel need no arrays of means: a flat loop, several times as fast
standardize_grey = Kernel(
    "standardize_grey", "x", "y", "mean std", BODY, compute="float32"
)
standardize_channels = Kernel(
    "standardize_channels", "x mean std", "y", body=BODY, compute="float32"
)


class Standardize:
    """Zero mean and unit deviation in each channel: (x - mean) / std.

    `mean` and `std`, float64 of shape (C,), are taken over all images and pixels
    of a channel (axis 1): fit them on the training images alone, and apply them
    to every image the model ever sees. A channel that does not vary has std 1.
    """

    def __init__(self) -> None:
        self.mean: np.ndarray | None = None
        self.std: np.ndarray | None = None
        self._there: dict[str, tuple] = {}  # device: (of which values, arrays)

    def fit(self, images: np.ndarray) -> "Standardize":
        """Measure `images` (N, C, ...), exactly for bytes; returns self.

        mean = sum(x) / n,  std = sqrt(sum((x - mean)^2) / n)
        """
        if images.ndim < 2 or images.size == 0:
            raise DataError(
                "Standardize is fitted on images of shape (N, C, ...), at least one; "
                f"got shape {images.shape}"
            )
        count = images.size // images.shape[1]
        mean = _sum(images, lambda x: x) / count
        if not np.isfinite(mean).all():
            raise DataError("Standardize cannot be fitted: the images hold NaN or Inf")
        centre = _per_channel(mean, images.ndim)
        std = np.sqrt(_sum(images, lambda x: np.square(x - centre)) / count)
        # float32 cannot tell such values apart: the channel is constant
        constant = std <= np.finfo(np.float32).eps * np.abs(mean)
        self.mean, self.std = mean, np.where(constant, 1.0, std)
        return self

    def __call__(self, images):
        """Standardised `images` (N, C, ...), float32, on their own device."""
        if self.mean is None:
            raise RuntimeError("Standardize has no mean and std yet: call fit first")
        if images.ndim < 2 or images.shape[1] != len(self.mean):
            raise DataError(
                f"Standardize was fitted on images of {len(self.mean)} channels, "
                f"got shape {images.shape}"
            )
        with use_device(device_of(images)):
            out = array_module(images).empty(images.shape, np.float32)
        if len(self.mean) == 1:
            mean, std = float(self.mean[0]), float(self.std[0])
            return standardize_grey(images, out=out, mean=mean, std=std)
        constants = self._constants(device_of(images))
        return standardize_channels(
            images, *(_per_channel(c, images.ndim) for c in constants), out=out
        )

    def _constants(self, device: str) -> tuple:
        """mean and std as float32 on a device, sent there where they have changed."""
        narrow = [value.astype(np.float32) for value in (self.mean, self.std)]
        values = [value.tolist() for value in narrow]
        if device not in self._there or self._there[device][0] != values:
            there = tuple(to_device(value, device) for value in narrow)
            self._there[device] = values, there
        return self._there[device][1]

    def state_dict(self) -> dict[str, np.ndarray]:
        """`mean` and `std`, for a checkpoint; empty before `fit`."""
        if self.mean is None:
            return {}
        return {"mean": self.mean.copy(), "std": self.std.copy()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take `mean` and `std` from a checkpoint (arrays or lists of numbers)."""
        try:
            mean = np.array(state_dict["mean"], dtype=np.float64)
            std = np.array(state_dict["std"], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                "the state of Standardize should hold numbers under mean and std, "
                f"got the keys {', '.join(map(str, state_dict)) or 'none'}"
            ) from None
        good = mean.ndim == 1 and mean.shape == std.shape
        if not (good and np.isfinite(mean).all() and np.isfinite(std).all()):
            raise CheckpointError(
                "mean and std of Standardize should be finite, one of each a channel, "
                f"got mean {mean.tolist()} and std {std.tolist()}"
            )
        if not (std > 0).all():
            raise CheckpointError(f"std should be positive, got {std.tolist()}")
        self.mean, self.std = mean, std


def _per_channel(value, ndim: int):
    return value.reshape(-1, *(1,) * (ndim - 2))  # (C, 1, 1) beside (N, C, H, W)


def _sum(images: np.ndarray, function) -> np.ndarray:
    """The sum of function(images) over everything but the channels, in float64."""
    axes = (0, *range(2, images.ndim))
    total = np.zeros(images.shape[1])
    for start in range(0, len(images), CHUNK):
        chunk = images[start : start + CHUNK].astype(np.float64)
        total += function(chunk).sum(axis=axes)
    return total
