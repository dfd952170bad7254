"""Adam over several ranks, each of which keeps a share of the moments."""

from math import isfinite, sqrt

import numpy as np

from minidl.array import euclid
from minidl.array.device import array_module, on_gpu
from minidl.autograd.mode import enable_grad
from minidl.autograd.tensor import Tensor
from minidl.nn.parameter import Parameter
from minidl.optim import state
from minidl.optim.adam import Adam
from minidl.optim.clip import gradients, shrink
from minidl.optim.groups import admit, named, unique


class ShardedAdam(Adam):
    """Adam whose moments are divided among the ranks: ZeRO, stage 1.

        model = distributed.DataParallel(model)
        optimizer = distributed.ShardedAdam(model.parameters(), lr=1e-3, model=model)

    A training step stays as it is. The model's `wait` then leaves on each rank its
    share of the gradients alone, and the parameters' `grad` is None; `step` updates
    that share of the weights and gathers all of them. The numbers are Adam's, AdamW's
    with `decoupled_weight_decay=True`.

    `params` are parameters of `model`, a DataParallel of this optimizer alone, and in
    the end must be all that require a gradient. `param_groups` holds this rank's
    pieces of them, each a vector. `step`, `clip_grad_norm_`, `state_dict` and
    `load_state_dict` are to be called on all ranks. The state is saved whole: it fits
    any number of ranks, and Adam.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        model,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ):
        self.communicator, self.exchange = model.communicator, model.sharded()
        self.members: list[dict[str, Parameter]] = []  # of each group, by name
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        model.exchange = self.exchange

    def add_param_group(self, param_group: dict) -> None:
        given = named(param_group["params"])
        self.check({**self.defaults, **param_group})
        for _, p in given:
            if not isinstance(p, Parameter):
                raise TypeError(
                    f"ShardedAdam trains parameters of modules, got {type(p).__name__}"
                )
        taken = {name: p for group in self.members for name, p in group.items()}
        admit(given, taken.values())
        members, trained = {}, dict.fromkeys(self.exchange.parameters)
        for name, p in given:
            if p.requires_grad and p not in trained:
                raise ValueError(
                    f"parameter {p.name!r} required no gradient when the model was made"
                    " data parallel, or is none of its parameters"
                )
            members[unique(name or p.name or f"param{len(taken)}", taken)] = p
        pieces = self.exchange.adopt(list(members.values())) if members else []
        self.members.append(members)
        names = {p: name for name, p in members.items()}
        own = [(f"{names[q.parameter]}[{q.start}:{q.stop}]", q) for q in pieces]
        super().add_param_group({**param_group, "params": own})

    # The step ---------------------------------------------------------------------

    @property
    def overflow(self) -> bool:
        """Whether any rank has found a gradient that is infinite or NaN."""
        return self.exchange.overflow

    def step(self, closure=None):
        """Update this rank's share of the weights, then gather those of all ranks."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for members in self.members:
            for name, p in members.items():
                if p.grad is not None:
                    raise RuntimeError(
                        f"the gradient of {name!r} has not been exchanged: call "
                        "model.backward(loss) of the DataParallel, outside no_sync()"
                    )
        super().step()
        self.exchange.gather_parameters()
        for storage in self.exchange.storages:
            if storage.low is not None:  # of which only the own share is new
                storage.keep_low(storage.low.dtype)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, what no_sync() has added up included."""
        super().zero_grad(set_to_none)
        for members in self.members:
            for p in members.values():
                p.grad = None

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """g *= min(1, max_norm / (norm + 1e-6)), with the norm over all ranks; that."""
        total, _ = self.gradient_norm()
        for g in gradients(self.state):
            shrink(out=g, total=total, limit=float(max_norm))
        if on_gpu(total):
            return Tensor(total.reshape(()).astype(np.float32))
        return Tensor(np.asarray(total, np.float32))

    def gradient_norm(self) -> tuple:
        """The norm of the gradients of all ranks, and whether it is not finite."""
        found, like = gradients(self.state), self.exchange.parameters[0].data
        if not on_gpu(like):
            square = np.array([euclid.norm(found)[0] ** 2])
            square = float(self.communicator.all_reduce(square)[0])
            return sqrt(square), not isfinite(square)
        with like.device:
            xp = array_module(like)
            square = euclid.on_device(found)[:1] if found else xp.zeros(1)
            self.communicator.all_reduce(square)
            return xp.sqrt(square), ~xp.isfinite(square)

    def trace(self, param: Tensor, index):
        """Not here, where no rank knows all of a parameter's state."""
        raise RuntimeError("ShardedAdam has no trace: look at a step of Adam")

    # The state --------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Adam's state of the whole parameters, gathered from all ranks."""
        values = {}
        for group, members, flats in zip(
            self.param_groups, self.members, self.flat, strict=True
        ):
            counts = self.counted(members)
            buffers = self.rule(group).state
            whole = {name: self.gathered(members, flats, name) for name in buffers}
            for name, p in members.items():
                arrays = {key: Tensor(whole[key][p]) for key in buffers}
                values[name] = {"step": counts[name], **arrays}
        groups = [
            {**state.settings(group), "params": list(members)}
            for group, members in zip(self.param_groups, self.members, strict=True)
        ]
        return {"state": values, "param_groups": groups}

    def counted(self, members: dict[str, Parameter]) -> dict[str, int]:
        """The steps of each parameter, of which a rank knows those it has pieces of."""
        steps = dict.fromkeys(members.values(), 0)
        for piece, held in self.state.items():
            if piece.parameter in steps:
                steps[piece.parameter] = int(held["step"].item())
        counts = np.array(list(steps.values()), np.int64)
        if members:
            self.communicator.all_reduce(counts, "max")
        return dict(zip(members, counts.tolist(), strict=True))

    def gathered(self, members, flats, key: str) -> dict:
        """One buffer of the state, as an array a parameter."""
        whole = {p.storage: p.storage.zeros() for p in members.values()}
        for flat in flats:
            for piece in flat.parameters:
                piece.of(whole[piece.storage])[...] = flat.view(key, piece)
        for storage, array in whole.items():
            self.exchange.gather(storage, array)
        return {
            p: p.storage.view(whole[p.storage], p.offset, p.shape)
            for p in members.values()
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state of Adam or ShardedAdam, of any number of ranks.

        Raises ValueError, changing nothing, if it does not fit.
        """
        given, groups = state_dict["state"], state_dict["param_groups"]
        if [list(m) for m in self.members] != [list(g["params"]) for g in groups]:
            raise ValueError("the optimizer's state has other parameters or groups")
        values, own_groups = {}, []
        for new, group, members in zip(
            groups, self.param_groups, self.members, strict=True
        ):
            merged = {**group, **state.settings(new)}
            for name, p in members.items():
                state.check(self, merged, name, p.shape, given.get(name, {}))
            names = {p: name for name, p in members.items()}
            for q in group["params"]:
                values[self.names[q]] = self.part(q, given[names[q.parameter]])
            own = [self.names[q] for q in group["params"]]
            own_groups.append({**state.settings(new), "params": own})
        super().load_state_dict({"state": values, "param_groups": own_groups})

    def part(self, piece, values: dict) -> dict:
        """The state of a piece, from that of its parameter."""
        return {
            key: value
            if key in self.counters
            else state.array_of(value).reshape(-1)[piece.start : piece.stop]
            for key, value in values.items()
        }
