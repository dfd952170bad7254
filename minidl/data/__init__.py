"""The room `data`: files become minibatches.

datasets.load -> Dataset (images, labels) -> Standardize.fit on the training set
Sampler (which samples, when) -> DataLoader -> the model
"""

from minidl.array.sampling import Sampler
from minidl.data.datasets import Dataset, load
from minidl.data.loader import DataLoader
from minidl.data.transforms import Standardize

__all__ = ["DataLoader", "Dataset", "Sampler", "Standardize", "load"]
