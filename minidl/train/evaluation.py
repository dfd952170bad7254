"""A checkpoint's loss and accuracy on a test set."""

from dataclasses import replace
from pathlib import Path

from minidl.array.device import use_device
from minidl.array.errors import CheckpointError, UsageError
from minidl.data import load
from minidl.distributed import Communicator, DataParallel
from minidl.train.checkpoint import load_model
from minidl.train.precision import Precision
from minidl.train.recipe import Settings, build_model, loader_of
from minidl.train.trainer import evaluate


def evaluate_checkpoint(
    path: str, settings: Settings, communicator: Communicator
) -> tuple[float, float, int]:
    """(loss, accuracy, samples) of a checkpoint on the whole test set."""
    state, config, scaling = load_model(Path(path))
    device = communicator.place(settings.device)
    trained = config.get("precision", "fp32")  # missing: of a time without a choice
    precision = Precision(settings.precision or trained, device)
    name = settings.dataset or config["dataset"]
    _, test = load(name, settings.data)
    if list(test.images.shape[1:]) != config["image_shape"]:
        raise UsageError(
            f"{path} was trained on images of shape {tuple(config['image_shape'])}, "
            f"those of {name} have {test.images.shape[1:]}: choose another --dataset"
        )
    with use_device(device), precision.in_force():
        model = build_model(
            config["model"], tuple(config["image_shape"]), config["classes"]
        )
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{path} holds other weights than its model {config['model']}: {error}"
            ) from error
        precision.apply(model)
        parallel = DataParallel(model.to(device), communicator)
        settings = replace(settings, dataset=name).filled()
        loader = loader_of(test, settings, communicator, scaling, device, False)
        return *evaluate(parallel, loader, precision.loss_fn), len(test)
