"""The same step as one CUDA graph: recorded once a shape of batch, then replayed."""

from collections import Counter
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from minidl.array.device import array_module, to_device, use_device
from minidl.array.errors import CaptureError, UsageError
from minidl.array.graph import Graph, rehearsal
from minidl.autograd.tensor import Tensor
from minidl.train.flags import GRAPH
from minidl.train.output import say
from minidl.train.step import UNSCALED, train_step

WARM_UP = 3  # steps of a shape before it is recorded: they compile, plan, rehearse
MOST = 4  # shapes that are recorded; each keeps the memory of a step


class Plan(IntEnum):
    """What a rank would do with a batch."""

    AS_IT_IS = 0
    REHEARSE = 1
    RECORD = 2
    REPLAY = 3


class CapturedStep:
    """`train_step`, to be called like it, with its launches replayed as a CUDA graph.

        step = CapturedStep()
        loss = step(model, loss_fn, optimizer, images, labels)

    The first steps with a shape of batch run as they are, the next is recorded, and
    from then on a step costs the host one call. Shapes that come later than the first
    few, and what cannot be recorded, run as they are: a CPU, an exchange that passes
    through the host, a model that waits for the device. The last is said, once, or with
    `required` raised as a UsageError.

    The numbers are those of `step`. Learning rates and what else an optimizer's group
    holds are renewed before each replay, random draws go on from where they are, and
    parameters may be frozen and modules put into another mode; anything else that
    Python does in a step is done once, when it is recorded (`forget` starts anew). Of
    several ranks all replay a step or none. The next step writes the loss anew.
    """

    def __init__(self, step: Callable = train_step, required: bool = False):
        self.step, self.required = step, required
        self.calls, self.why_not = 0, ""  # why it cannot be captured
        self.seen: Counter = Counter()
        self.rehearsed: dict[tuple, bool] = {}
        self.graphs: dict[tuple, Recorded] = {}
        self.model = None  # the one that `parts` belong to
        self.parts: tuple[list, list] = ([], [])
        self.trained: list[bool] = []

    def __call__(
        self,
        model,
        loss_fn,
        optimizer,
        images: Tensor,
        labels: Tensor,
        scaler=UNSCALED,
    ) -> Tensor:
        """One step of training; the loss of this rank's share, still on its device."""
        if model is not self.model:
            self.model = model
            self.parts = list(model.modules()), list(model.parameters())
        trained = [p.requires_grad for p in self.parts[1]]
        if trained != self.trained:  # optimizers count the steps of each parameter
            self.trained = trained
            self.forget()
        device = self.parts[1][0].device
        batch = [to_device(x.data, device) for x in (images, labels)]
        modes = tuple([module.training for module in self.parts[0]])
        key = (model, loss_fn, optimizer, scaler, modes, *map(kind, batch))
        self.seen[key] += 1
        self.calls += 1
        if self.calls == 2:  # by now ranks know how their arrays travel
            self.give_up(obstacle(model, optimizer, device))
        if self.calls == 1 or self.why_not:
            return self.run(key, batch)
        with use_device(device):
            plan = agreed(model, self.plan(key))
            if plan == Plan.RECORD:
                plan = self.record(key, batch)
            if plan == Plan.REPLAY:
                optimizer.refresh()
                with model.communicator.replaying():
                    return self.graphs[key].replay(batch)
            if plan == Plan.REHEARSE:
                self.rehearsed[key] = True
                with rehearsal():
                    loss = self.run(key, batch)
                return copied(loss)
            return self.run(key, batch)

    def run(self, key: tuple, batch: list) -> Tensor:
        """The step as it is."""
        model, loss_fn, optimizer, scaler = key[:4]
        return self.step(model, loss_fn, optimizer, *map(Tensor, batch), scaler)

    def plan(self, key: tuple) -> Plan:
        if key in self.graphs:
            return Plan.REPLAY
        if key in self.rehearsed:
            return Plan.RECORD
        ready = self.seen[key] >= WARM_UP and len(self.rehearsed) < MOST
        return Plan.REHEARSE if ready else Plan.AS_IT_IS

    def record(self, key: tuple, batch: list) -> Plan:
        """Record a step with this batch; what to do with it then."""
        model, _, optimizer, scaler = key[:4]
        optimizer.refresh()
        why_not = ""
        try:
            self.graphs[key] = Recorded(lambda batch: self.run(key, batch), batch)
        except CaptureError as error:
            why_not = str(error)
            model.give_up()
            scaler.give_up()
        reasons = model.communicator.all_gather_object(why_not)
        self.give_up(next(filter(None, reasons), ""))
        return Plan.AS_IT_IS if self.why_not else Plan.REPLAY

    def give_up(self, why_not: str) -> None:
        """Run steps as they are from now on, if there is a reason."""
        self.why_not = why_not
        if not why_not:
            return
        self.forget()
        if self.required:
            raise UsageError(f"the step cannot be captured: {why_not}")
        say(f"the step is not captured, and runs as it is: {why_not}")

    def forget(self) -> None:
        """Let go of all graphs and their memory; the next steps begin anew.

        To be called after what a graph does not see: another loss, a new group of
        parameters.
        """
        self.graphs.clear()
        self.rehearsed.clear()
        self.seen.clear()


class Recorded:
    """A step as a graph, with the batch that it reads and the loss that it writes."""

    def __init__(self, step: Callable, batch: list):
        self.batch = [array_module(x).empty_like(x) for x in batch]
        self.graph = Graph(lambda: bare(step(self.batch)))

    def replay(self, batch: list) -> Tensor:
        for own, given in zip(self.batch, batch, strict=True):
            own[...] = given
        return self.graph.replay()


def bare(loss: Tensor) -> Tensor:
    """The loss with its total and count, without how it was computed."""
    result = loss.detach()
    result.total, result.count = loss.total.detach(), loss.count
    if isinstance(loss.count, Tensor):
        result.count = loss.count.detach()
    return result


def copied(loss: Tensor) -> Tensor:
    """A rehearsal's loss in memory of the current stream."""
    result = bare(loss)
    parts = [result, result.total, result.count]
    held = [(x, x.data) for x in parts if isinstance(x, Tensor)]
    for x, array in held:
        x.data = array_module(array).empty_like(array)
    with rehearsal():  # its own memory is used on its own stream alone
        for x, array in held:
            x.data[...] = array
    return result


def kind(array) -> tuple:
    return array.shape, array.dtype


def agreed(model, plan: Plan) -> Plan:
    """The plan if it is that of all ranks; they also tell who wants to stop."""
    exchange = model.exchange
    own = np.array([exchange.stop_wanted, plan, -plan], float)
    model.communicator.all_reduce(own, "max")
    exchange.stop = bool(own[0])
    return plan if own[1] == -own[2] else Plan.AS_IT_IS


def step_for(graph: str, model, optimizer, device: str) -> CapturedStep | None:
    """What `--graph` asks for in the place of `train_step`; None leaves that there.

    "auto" captures on a GPU. Raises UsageError where "on" cannot be.
    """
    if graph not in GRAPH:
        raise UsageError(f"graph is one of {', '.join(GRAPH)}, not {graph!r}")
    if graph == "off" or (graph == "auto" and device == "cpu"):
        return None
    why_not = obstacle(model, optimizer, device)
    if graph == "on" and why_not:
        raise UsageError(f"--graph on: {why_not}; leave it out, or set it to off")
    return CapturedStep(required=graph == "on")


def obstacle(model, optimizer, device: str) -> str:
    """Why a step cannot be captured, as far as one can see beforehand."""
    if device == "cpu":
        return "CUDA graphs need a GPU, and the model is on the CPU"
    communicator = model.communicator
    if not communicator.capturable:
        return (
            f"with {communicator.backend} the gradients of {communicator.size} ranks "
            "meet on the host"
        )
    if not hasattr(optimizer, "refresh"):
        return f"{type(optimizer).__name__} keeps what a step changes on the host"
    return ""
