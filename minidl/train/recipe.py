"""The classic recipe, from a few settings: data, scaling, model, rule, training."""

from dataclasses import dataclass, replace
from pathlib import Path

from minidl import __version__
from minidl.array.device import use_device
from minidl.array.errors import UsageError
from minidl.array.random import manual_seed
from minidl.array.sampling import Sampler
from minidl.data import DataLoader, Dataset, Standardize, load
from minidl.distributed import Communicator, DataParallel
from minidl.nn import MLP, Module, SmallCNN
from minidl.optim import SGD, Adam, AdamW, Optimizer
from minidl.optim.lr_scheduler import CosineAnnealingLR
from minidl.train.captured import step_for
from minidl.train.checkpoint import safetensors, save_model
from minidl.train.files import make_directory, remove_files, remove_torn, replace_json
from minidl.train.precision import Precision
from minidl.train.profiler import TRACE, graph_mode, profiling
from minidl.train.progress import Metrics
from minidl.train.report import (
    Console,
    MetricsFile,
    draw_curves,
    require_matplotlib,
    require_tqdm,
)
from minidl.train.resume import (
    CheckWeights,
    SaveCheckpoints,
    go_on,
    stopping_on_signals,
)
from minidl.train.store import Store
from minidl.train.trainer import Trainer

EPOCHS = {"digits": 30, "mnist": 6, "fashion_mnist": 10}
BATCH_SIZE = {"digits": 32, "mnist": 128, "fashion_mnist": 128}
RESULTS = ("config.json", "metrics.jsonl", "model.safetensors", "curves.png", TRACE)
ADAM_LR = {"digits": 4e-3, "mnist": 2e-3, "fashion_mnist": 2e-3}
SGD_LR = 0.05


@dataclass(frozen=True)
class Settings:
    """What `minidl train` can be told; None is the default of the data set or rule."""

    dataset: str = "digits"
    data: str | None = None
    model: str = "cnn"
    optimizer: str = "adam"
    lr: float | None = None
    weight_decay: float = 0.0
    batch_size: int | None = None
    epochs: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str | None = None
    graph: str = "auto"
    profile: int | None = None
    out: str | None = None
    resume: str | None = None
    save_every: int | None = None
    keep: int = 3
    check_every: int | None = None

    def filled(self) -> "Settings":
        """With every default in its place."""
        return replace(
            self,
            lr=self.default_lr() if self.lr is None else self.lr,
            batch_size=self.batch_size or BATCH_SIZE[self.dataset],
            epochs=self.epochs or EPOCHS[self.dataset],
            precision=self.precision or "fp32",
            out=self.out or f"runs/{self.dataset}-{self.model}",
        )

    def default_lr(self) -> float:
        return SGD_LR if self.optimizer == "sgd" else ADAM_LR[self.dataset]


def build_model(name: str, shape: tuple[int, ...], classes: int) -> Module:
    """The model of this name for images of shape (C, H, W).

    Raises UsageError for images that it does not take.
    """
    channels, height, width = shape
    if name == "cnn" and (height != width or height < 2):
        raise UsageError(
            f"the model cnn takes square images of at least 2 x 2 pixels, these have "
            f"{height} x {width}: choose --model mlp"
        )
    small = height < 16
    if name == "mlp":
        hidden = (128, 64) if small else (512, 512)
        return MLP((channels * height * width, *hidden, classes))
    if small:
        return SmallCNN(channels, height, classes, width=(16, 32), hidden=0)
    return SmallCNN(channels, height, classes, width=(32, 64), hidden=128)


def build_optimizer(settings: Settings, model: Module) -> Optimizer:
    """The rule of this name over all parameters of the model."""
    options = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == "sgd":
        return SGD(model.parameters(), momentum=0.9, nesterov=True, **options)
    return {"adam": Adam, "adamw": AdamW}[settings.optimizer](
        model.parameters(), **options
    )


def loader_of(dataset: Dataset, settings, communicator, scaling, device, train: bool):
    """Minibatches of this rank's share, scaled, on its device."""
    sampler = Sampler(
        dataset,
        num_replicas=communicator.size,
        rank=communicator.rank,
        shuffle=train,
        seed=settings.seed,
    )
    return DataLoader(
        dataset, settings.batch_size, sampler=sampler, transform=scaling, device=device
    )


def train(settings: Settings, communicator: Communicator) -> list[Metrics]:
    """Data, split, standardization, model, training, evaluation; results in `out`.

    Raises Stopped where a signal has ended the training early.
    """
    settings = settings.filled()
    lead = communicator.rank == 0
    if lead:  # all that can be refused is refused before a file is touched
        require_packages()
    device = communicator.place(settings.device)
    precision = Precision(settings.precision, device)
    if settings.precision == "tf32" and device == "cpu":
        raise UsageError("tf32 is a way in which GPUs multiply: on a CPU choose fp32")
    training, test = load(settings.dataset, settings.data)
    scaling = Standardize().fit(training.images)  # on the training set alone
    loaders = [
        loader_of(part, settings, communicator, scaling, device, train)
        for part, train in ((training, True), (test, False))
    ]
    out = Path(settings.out)
    shape, classes = training.images.shape[1:], len(training.classes)
    config = {
        **settings.__dict__,
        "image_shape": list(shape),
        "classes": classes,
        "training_samples": len(training),
        "ranks": communicator.size,
        "device": device,
        "minidl": __version__,
    }
    with use_device(device), precision.in_force():
        trainer = trainer_for(settings, communicator, device, precision, loaders[0])
        store = Store(out / "checkpoints", settings.keep)
        go_on(trainer, settings.resume, store, config, scaling)
        precision.keep_low(trainer.model)
        tracing = profiling(trainer, settings, len(loaders[0]), out, device)
        if lead:
            open_directory(out, store)
            replace_json(out / "config.json", config)
            file = MetricsFile(out / "metrics.jsonl", trainer.progress.history)
            trainer.reporters += [Console(settings.epochs), file]
        extra = {"config": config, "standardize": scaling.state_dict()}
        trainer.reporters += [
            CheckWeights(trainer, settings.check_every),
            SaveCheckpoints(trainer, store, settings.save_every, extra),
        ]
        with tracing, stopping_on_signals(trainer.model.exchange):
            history = trainer.fit(*loaders, settings.epochs)

    if lead:
        save_model(out / "model.safetensors", trainer.model.module, config, scaling)
        title = f"{settings.model} on {settings.dataset}, {settings.optimizer}"
        draw_curves(history, out / "curves.png", title)
    return history


def trainer_for(
    settings: Settings,
    communicator: Communicator,
    device: str,
    precision: Precision,
    loader: DataLoader,
) -> Trainer:
    """Model, rule, schedule and step for the data that this loader gives out."""
    manual_seed(settings.seed)
    shape, classes = loader.dataset.images.shape[1:], len(loader.dataset.classes)
    model = build_model(settings.model, shape, classes).to(device)
    precision.apply(model)
    optimizer = build_optimizer(settings, model)
    parallel = DataParallel(model, communicator)
    return Trainer(
        parallel,
        optimizer,
        precision.loss_fn,
        CosineAnnealingLR(optimizer, settings.epochs * len(loader)),
        scaler=precision.scaler,
        step=step_for(graph_mode(settings), parallel, optimizer, device),
    )


def require_packages() -> None:
    """Raise DependencyError where a training could not be shown or saved."""
    safetensors()
    require_tqdm()
    require_matplotlib()


def open_directory(out: Path, store: Store) -> None:
    """Make --out ready: what is in it afterwards belongs to this training.

    A training that goes on from a checkpoint in it keeps what it had written there.
    """
    make_directory(out)
    if store.directory.exists():
        make_directory(store.directory)
    remove_torn(out, RESULTS)
    remove_torn(store.directory, ("step-*",))
    if not store.own:
        remove_files(out, RESULTS)
