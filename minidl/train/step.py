"""The walk: a minibatch goes through the rooms once forward and once back."""

from minidl.autograd.tensor import Tensor


def train_step(model, loss_fn, optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """One step of training; the loss of this rank's share, still on its device.

    `model` is a `distributed.DataParallel`, on one rank too.
    """
    optimizer.zero_grad()
    loss = loss_fn(model(images), labels)
    model.share(loss).backward(on_grad_ready=model.ready)  # buckets leave as they fill
    model.wait()
    optimizer.step()  # one kernel
    return loss
