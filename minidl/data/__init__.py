"""The room `data`: files become minibatches.

datasets.load -> Dataset (images, labels) -> Standardize.fit on the training set
DistributedSampler (which samples, when) -> DataLoader -> the model
"""

from minidl.array.sampling import DistributedSampler
from minidl.data.datasets import Dataset, load
from minidl.data.loader import DataLoader
from minidl.data.transforms import Standardize

__all__ = ["DataLoader", "Dataset", "DistributedSampler", "Standardize", "load"]
