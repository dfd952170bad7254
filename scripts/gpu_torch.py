"""PyTorch's training steps for gpu_check: eager or compiled, in each precision."""

from collections.abc import Callable

from gpu_networks import model_of


def layouts(torch) -> dict[str, dict]:
    last = {"memory_format": torch.channels_last}
    return {"PyTorch": {}, "PyTorch, channels last": last}


def best_layout(images) -> int:
    """Its place in `layouts`: channels last, where there is more than one."""
    return int(images.shape[1] > 1)


def compiled_step(torch, device: str, build, images, labels, precision) -> Callable:
    """By torch.compile with CUDA graphs, in the best layout."""
    layout = [*layouts(torch).values()][best_layout(images)]

    def compiled(function):
        return torch.compile(function, mode="reduce-overhead")

    return step_of(torch, device, build, images, labels, layout, precision, compiled)


def step_of(
    torch,
    device: str,
    build: Callable,
    images,
    labels,
    layout: dict,
    precision: str,
    compiled: Callable = lambda function: function,
) -> Callable[[], None]:
    """Forward, backward and the fused Adam; minidl's weights."""
    model = build(torch.nn)
    state = model_of(build).state_dict().items()
    model.load_state_dict({k: torch.from_numpy(v.numpy()) for k, v in state})
    model = model.to(device, **layout)
    x = torch.from_numpy(images).to(device, **layout)
    y = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    low = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")

    @compiled
    def loss_of(x, y):
        return torch.nn.functional.cross_entropy(model(x), y)

    def step():
        optimizer.zero_grad()
        with low:
            loss = loss_of(x, y)
        loss.backward()
        optimizer.step()

    return step
