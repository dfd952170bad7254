"""The walk: a minibatch goes through the rooms once forward and once back."""

from minidl.autograd.tensor import Tensor
from minidl.optim import GradScaler

UNSCALED = GradScaler(enabled=False)  # leaves losses and gradients as they are


def train_step(
    model, loss_fn, optimizer, images: Tensor, labels: Tensor, scaler=UNSCALED
) -> Tensor:
    """One step of training; the loss of this rank's share, still on its device.

    `model` is a `distributed.DataParallel`, on one rank too. `scaler`, a GradScaler,
    leaves out the step where a gradient is infinite or NaN.
    """
    optimizer.zero_grad()
    loss = loss_fn(model(images), labels)
    total = scaler.scale(model.share(loss))
    total.backward(on_grad_ready=model.ready)  # buckets leave as they fill
    model.wait()
    scaler.step(optimizer)  # one kernel
    scaler.update()
    return loss
