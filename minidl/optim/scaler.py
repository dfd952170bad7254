"""Loss scaling, for gradients that float16 would round to zero."""

import numpy as np

from minidl.array import euclid
from minidl.array.device import device_of, on_gpu, to_device, use_device
from minidl.array.kernel import Kernel
from minidl.autograd.tensor import Tensor
from minidl.optim.clip import gradients
from minidl.optim.optimizer import Optimizer

unscale = Kernel("unscale", outputs="g", scalars="scale", body="g = g / scale;")
update_scale = Kernel(
    "update_scale",
    outputs="scale good",
    scalars="found_inf growth backoff interval",
    body="""
    good = where(found_inf > 0, 0, good + 1);
    auto larger = scale * growth;
    auto grows = (good >= interval) & ~isinf(larger);
    scale = where(found_inf > 0, scale * backoff, where(grows, larger, scale));
    good = where(good >= interval, 0, good);
    """,
)


class GradScaler:
    """Scales the loss up and the gradients down, and leaves out steps that overflow.

        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    The scale falls by `backoff_factor` when a gradient is infinite or NaN, and rises by
    `growth_factor` after `growth_interval` steps without one. The gradients are
    measured once; the optimizer's own kernel divides them by the scale and, on a GPU,
    leaves out the step: nothing waits for the device. In memory they stay as `backward`
    left them, unless `unscale_` is called.
    PyTorch's torch.amp.GradScaler, but for `device`: None is that of the first outputs.
    """

    def __init__(
        self,
        device: str | None = None,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ):
        if not growth_factor > 1:
            raise ValueError(f"growth_factor must be over 1, got {growth_factor}")
        if not 0 < backoff_factor < 1:
            raise ValueError(f"backoff_factor must lie in (0, 1), got {backoff_factor}")
        self._device, self._enabled = device, enabled
        self._initial = (init_scale, 0)
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._growth_interval = growth_interval
        self._scale = self._good = None  # 0-d arrays, once the device is known
        # of each optimizer, whether a gradient is not finite, and what was done last
        self._found: dict = {}

    def scale(self, outputs):
        """The Tensor, or each of a list or tuple of them, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, list | tuple):
            return type(outputs)(map(self.scale, outputs))
        if self._scale is None:
            self._place(self._device or outputs.device)
        return outputs * Tensor(to_device(self._scale, outputs.device))

    def _place(self, device: str) -> None:
        """Put the scale, and the count of good steps, on a device."""
        with use_device(device):
            scale, good = (np.full((), v, np.float32) for v in self._initial)
            self._scale, self._good = to_device(scale, device), to_device(good, device)

    def _check(self, what: str) -> None:
        if self._scale is None:
            raise RuntimeError(f"{what} needs a scaled loss: call scale(loss) first")

    def unscale_(self, optimizer) -> None:
        """Divide the optimizer's gradients by the scale, for clipping before `step`."""
        if not self._enabled:
            return
        self._check("unscale_")
        if optimizer in self._found:
            done = self._found[optimizer][1]
            raise RuntimeError(f"{done} was called already since the last update()")
        self._find(optimizer, "unscale_")
        for g in optimizer_gradients(optimizer):
            unscale(out=g, scale=to_device(self._scale, device_of(g)))

    def _find(self, optimizer, doing: str) -> None:
        """Look for gradients that are not finite; what all ranks know is known."""
        arrays = optimizer_gradients(optimizer)
        if any(g.dtype == np.float16 for g in arrays):
            raise ValueError(
                "float16 gradients cannot be unscaled, they would become zero: "
                "keep the parameters in float32"
            )
        known = getattr(optimizer, "overflow", None)
        found = euclid.norm(arrays)[1] if known is None else known
        self._found[optimizer] = [found, doing]

    def step(self, optimizer):
        """`optimizer.step()`, which changes nothing if a gradient is infinite or NaN.

        It is not called at all, and None returned, where to know costs nothing: on a
        CPU; and where the optimizer is none of this package: it is waited for.
        """
        if not self._enabled:
            return optimizer.step()
        self._check("step")
        if self._found.get(optimizer, (None, ""))[1] == "step":
            raise RuntimeError("step was called already since the last update()")
        ours, unscaled = isinstance(optimizer, Optimizer), optimizer in self._found
        if ours and not unscaled:
            self._find(optimizer, "step")
        elif not unscaled:
            self.unscale_(optimizer)
        self._found[optimizer][1] = "step"
        found = self._found[optimizer][0]
        if not (ours and on_gpu(found)) and found > 0:
            return None
        if not ours:
            return optimizer.step()
        own, optimizer.found_inf = optimizer.grad_scale, found
        if not unscaled:
            optimizer.grad_scale = self._scale if own is None else own * self._scale
        try:
            return optimizer.step()
        finally:
            optimizer.grad_scale, optimizer.found_inf = own, None

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Let the scale grow or fall by what was found, or set it; ends the step."""
        if not self._enabled:
            return
        self._check("update")
        if new_scale is not None:
            self._scale[...] = getattr(new_scale, "data", new_scale)
        elif not self._found:
            raise RuntimeError("update() needs a step(optimizer) before it")
        else:
            place = device_of(self._scale)
            found = [
                to_device(f, place) if on_gpu(f) else float(f)
                for f, _ in self._found.values()
            ]
            update_scale(
                out=(self._scale, self._good),
                found_inf=sum(found[1:], found[0]),
                growth=self._growth_factor,
                backoff=self._backoff_factor,
                interval=self._growth_interval,
            )
        self._found = {}

    def give_up(self) -> None:
        """Forget a step that has ended halfway, by an exception."""
        self._found = {}

    def get_scale(self) -> float:
        if not self._enabled:
            return 1.0
        return self._initial[0] if self._scale is None else float(self._scale)

    def get_growth_factor(self) -> float:
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        self._growth_interval = new_interval

    def is_enabled(self) -> bool:
        return self._enabled

    def state_dict(self) -> dict:
        """The scale, its rules and its count of good steps; {} if not enabled."""
        if not self._enabled:
            return {}
        good = self._initial[1] if self._good is None else int(self._good)
        return {
            "scale": self.get_scale(),
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": good,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state; raises RuntimeError for one of a scaler not enabled."""
        if not self._enabled:
            return
        if not state_dict:
            raise RuntimeError("this is the state of a GradScaler that was not enabled")
        self._initial = (state_dict["scale"], state_dict["_growth_tracker"])
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        if self._scale is not None:
            with use_device(device_of(self._scale)):
                self._scale.fill(state_dict["scale"])
                self._good.fill(state_dict["_growth_tracker"])


def optimizer_gradients(optimizer) -> list:
    """The gradients of all groups as arrays, one for neighbours in flat storage."""
    return gradients(p for group in optimizer.param_groups for p in group["params"])
