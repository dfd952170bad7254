"""Data parallelism: every rank computes its share, then the gradients are added up."""

from contextlib import contextmanager

from minidl.array.device import Array, array_module, on_gpu
from minidl.array.kernel import Kernel
from minidl.autograd.mode import is_grad_enabled
from minidl.autograd.tensor import Tensor
from minidl.distributed.communicator import Communicator
from minidl.distributed.compression import half_dtype
from minidl.distributed.consistency import check_same_weights
from minidl.distributed.exchange import BucketedExchange, NaiveExchange
from minidl.distributed.launch import init
from minidl.distributed.sharded import ShardedExchange
from minidl.nn.module import Module

reciprocal = Kernel("reciprocal_count", "count", "part", body="part = 1 / count;")


def beside(array, count: Tensor | float):
    """A count as a float64 array on the array's device, without waiting for it."""
    if isinstance(count, Tensor):
        return count.data.astype(float)
    return array_module(array).full((), count, float)


class Exchanged:
    """Whether gradients are those of all ranks; the parameters of a model share one,
    for their optimizer to look at."""

    done = True


class DataParallel:
    """A model whose gradients are those of the global batch, on every rank.

        model = distributed.DataParallel(model)
        loss = F.cross_entropy(model(images), labels)
        model.backward(loss)

    `backward` stands in the place of `loss.backward()`: it needs the loss's count.
    The model stays what it was, `module`, with its parameters' names. Arguments are
    those of PyTorch's DistributedDataParallel where it has them; `communicator` is
    that of `init()` unless given, `overlap=False` chooses the naive exchange.
    `compression`, "float16" or "bfloat16", halves what is sent, and rounds it: to 11
    or 8 binary digits. What is sent is the sum over a rank's samples (with NCCL their
    part of the mean), and float16 overflows at 65504: use it with a GradScaler, which
    then leaves out the step.

    Raises DistributedError on every rank, here, if the ranks hold different weights.
    """

    def __init__(
        self,
        module: Module,
        communicator: Communicator | None = None,
        bucket_cap_mb: float = 25,
        overlap: bool = True,
        compression: str | None = None,
    ):
        if not isinstance(module, Module):
            raise TypeError(f"DataParallel takes a Module, got {type(module).__name__}")
        half = half_dtype(compression)
        self.module = module
        self.communicator = init() if communicator is None else communicator
        if self.communicator.size == 1:
            half = None  # nothing is sent
        trained = [p for p in module.parameters() if p.requires_grad]
        for p in trained:
            if p.storage is not None:
                p.storage.sharded = False  # whatever exchange it had before
        self.bucket_cap_mb = bucket_cap_mb
        self.exchange = (
            BucketedExchange(trained, self.communicator, bucket_cap_mb, half)
            if overlap
            else NaiveExchange(trained, self.communicator, half)
        )
        self.count: float | Array | None = 0.0  # None: gradients are means already
        self.begun = False  # whether there are gradients that are to be exchanged
        self.syncing = True
        self.exchanged = Exchanged()
        if self.communicator.size > 1:
            never = Exchanged()
            never.done = False
            for p in module.parameters():
                p.exchanged = self.exchanged if p.requires_grad else never
        check_same_weights(module, self.communicator)
        if self.communicator.size > 1 and trained and on_gpu(trained[0].data):
            nothing = trained[0].data.reshape(-1)[:0]
            self.communicator.all_reduce(nothing)  # ranks agree how arrays travel

    def __call__(self, *inputs, **options):
        if is_grad_enabled():
            self.exchanged.done = False
        return self.module(*inputs, **options)

    def __getattr__(self, name: str):
        """What is not the exchange's is the model's: train, eval, state_dict, ..."""
        if name == "module":  # not yet there, while this is being copied
            raise AttributeError(name)
        return getattr(self.module, name)

    def sharded(self) -> ShardedExchange:
        """The exchange that a ShardedAdam puts in the place of this model's."""
        parameters, half = self.exchange.parameters, self.exchange.half
        return ShardedExchange(parameters, self.communicator, self.bucket_cap_mb, half)

    def share(self, loss: Tensor) -> Tensor:
        """What this rank differentiates: its part of the global mean, or its sum.

        The part where the global count can stay on the GPUs: they agree on it before
        backward, so that no pass over the gradients has to divide them. What no_sync()
        accumulates is sums, since its count is known last.
        """
        if self.begun or not self.syncing or not self._stays(loss):
            return self.sum_behind(loss)
        self._begin(loss)
        self.count = None
        if self.communicator.size == 1:
            return loss  # of all ranks already
        count = self.communicator.all_reduce(beside(loss.total.data, loss.count))
        part = array_module(count).empty((), loss.dtype)
        return loss.total * Tensor(reciprocal(count, out=part))

    def sum_behind(self, loss: Tensor) -> Tensor:
        """The sum behind a mean, which `wait` divides by the global count."""
        self._begin(loss)
        if self._stays(loss):
            self.count = self.count + beside(loss.total.data, loss.count)
        else:
            self.count = self.count + float(loss.count)
        return loss.total

    def _stays(self, loss: Tensor) -> bool:
        """Whether counts are on the GPUs, and the host need not know them."""
        return on_gpu(loss.data) and self.communicator.capturable

    def _begin(self, loss: Tensor) -> None:
        """Put aside what an earlier exchange has left; RuntimeError for what cannot be
        differentiated now."""
        if loss.total is None:
            raise RuntimeError(
                "this loss does not know how many terms it is the mean over, which its "
                "gradient on several ranks depends on: use a loss of minidl with "
                "reduction='mean', or the mean() of your terms, as the last operation, "
                "and give a GradScaler to backward(loss, scaler)"
            )
        if self.count is None:
            raise RuntimeError(
                "the gradients of the loss before are not exchanged yet: call wait() "
                "after its backward, give_up() if that has failed, or accumulate "
                "inside no_sync()"
            )
        if not self.begun:
            self.begun = True
            self.exchange.keep()

    def ready(self, parameter: Tensor) -> None:
        """For `on_grad_ready` of Tensor.backward."""
        if self.syncing:
            self.exchange.ready(parameter)

    def wait(self) -> None:
        """Return when every gradient is that of the global batch."""
        if self.syncing:
            self.exchange.wait(self.count)
            self.exchange.add_kept()
            self.count, self.begun = 0.0, False
            self.exchanged.done = True

    def backward(self, loss: Tensor, scaler=None) -> None:
        """loss.backward() on the global batch.

        With a GradScaler, as scaler.scale(loss).backward() is on one rank.
        """
        total = self.share(loss)
        if scaler is not None:
            total = scaler.scale(total)
        total.backward(on_grad_ready=self.ready)
        self.wait()

    def give_up(self) -> None:
        """Forget a step that has ended halfway, by an exception."""
        self.count, self.begun = 0.0, False
        self.exchange.give_up()

    @contextmanager
    def no_sync(self):
        """Accumulate gradients on each rank; the next backward outside sends all."""
        self.syncing = False
        try:
            yield
        finally:
            self.syncing = True
