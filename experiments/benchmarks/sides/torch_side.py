"""The same train step in torch: bfloat16 autocast over float32 parameters, compiled, fused Adam, an average by foreach.

A network without remat is compiled whole, one with remat block by block, so that equal blocks share their code.
"""

import time

import torch

from experiments.benchmarks.sides.common import Side, Workload, published, random_arrays
from experiments.benchmarks.sides.torch_unet import Block, VideoUNet


def build(work: Workload, tflop_per_step: float, *, products: bool = False, compiled: bool = True) -> Side:
    """Compiles the step and runs it once."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"
    matmul_tflops = float(f"{matmul_rate(device) / 1e12:.4g}")
    with device:
        model = VideoUNet(work.stage.network, products).to(memory_format=torch.channels_last)
    facts = {
        "side": "torch",
        "version": torch.__version__,
        "device": name,
        "network": work.name,
        "attention": "sdpa, over frames " + ("products" if products else "sdpa"),
        "remat": work.stage.network.remat,
        "state_dtype": work.optimizer.state_dtype,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": work.batch,
        "tflop_per_step": tflop_per_step,
        "published_tflops": published(name),
        "matmul_tflops": matmul_tflops,
    }
    step = train_step(work, model, device, compiled)
    held = {}

    def dispatch():
        held["loss"] = step()

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def after():
        found = {"loss": round(float(held["loss"]), 4)}
        if device.type == "cuda":
            found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return found

    began = time.perf_counter()
    dispatch()
    wait()
    facts["compile_seconds"] = round(time.perf_counter() - began, 1)
    return Side(facts, dispatch, wait, after)


def train_step(work: Workload, model: VideoUNet, device: torch.device, compiled: bool):
    """() -> loss; a whole update on the batch, which lies on the device."""
    batch = {key: torch.from_numpy(value).to(device) for key, value in random_arrays(work).items()}
    text_drop = work.stage.text_drop

    def loss_of(**batch):
        return loss(model, text_drop, **batch)

    torch._dynamo.config.recompile_limit = 64  # a program for each kind of block, and of tensor in the update
    if compiled and work.stage.network.remat:
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(dynamic=False)
    elif compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    parameters = list(model.parameters())
    averages = [parameter.detach().clone() for parameter in parameters]
    update = updater(work, parameters, averages, compiled and device.type == "cuda")

    def step():
        with torch.autocast("cuda" if device.type == "cuda" else "cpu", torch.bfloat16, cache_enabled=False):
            value = loss_of(**batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, work.optimizer.clip, foreach=True)
        update()
        for parameter in parameters:
            parameter.grad = None
        return value.detach()

    return step


def loss(model, text_drop: float, video_BTHWC, text_BLD, text_mask_BL, fps_B):
    """The epsilon error of a v network, as the stage's own loss (without its log of noise levels)."""
    x = video_BTHWC.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0
    B = len(x)
    time_B = (torch.rand((), device=x.device) + torch.arange(B, device=x.device) / B) % 1.0
    logsnr_B = (-2 * torch.log(torch.tan(time_B * (torch.pi / 2) + 1e-5))).clamp(-20, 20)
    drop_B = torch.rand(B, device=x.device) < text_drop
    first_L = torch.arange(text_mask_BL.shape[1], device=x.device) == 0
    text_BLD = torch.where(drop_B[:, None, None], 0.0, text_BLD)
    mask_BL = torch.where(drop_B[:, None], first_L, text_mask_BL)
    alpha, sigma = (torch.sigmoid(sign * logsnr_B).sqrt()[:, None, None, None, None] for sign in (1, -1))
    noise = torch.randn_like(x)
    z = alpha * x + sigma * noise
    v = model(z, logsnr_B=logsnr_B, text_BLD=text_BLD, mask_BL=mask_BL, fps_B=fps_B)
    return (sigma * z + alpha * v - noise).square().mean()


def updater(work: Workload, parameters, averages, compiled: bool):
    """() -> None; Adam and the average of the weights, from the gradients that the parameters hold."""
    config, decay = work.optimizer, work.step.ema_decay
    if config.state_dtype == "float32":
        fused = parameters[0].is_cuda
        adam = torch.optim.Adam(parameters, config.learning_rate, (config.b1, config.b2), fused=fused)

        def update():
            adam.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - decay)

        return update
    # torch's Adam keeps moments in the parameters' dtype; this is one kernel a tensor, with the average in it.
    moments = [[torch.zeros_like(p, dtype=torch.bfloat16) for p in parameters] for _ in range(2)]
    one = torch.compile(_adam, dynamic=True) if compiled else _adam
    step = torch.zeros((), device=parameters[0].device)

    def update():
        step.add_(1)
        first, second = 1 - config.b1**step, 1 - config.b2**step
        with torch.no_grad():
            for p, e, m, v in zip(parameters, averages, *moments):
                one(p, p.grad, e, m, v, first, second, config.b1, config.b2, config.learning_rate, decay)

    return update


def _adam(p, g, e, m, v, first, second, b1: float, b2: float, rate: float, decay: float):
    mean = m.float() * b1 + g * (1 - b1)
    square = v.float() * b2 + g * g * (1 - b2)
    new = p - rate * (mean / first) / ((square / second).sqrt() + 1e-8)
    m.copy_(mean)
    v.copy_(square)
    p.copy_(new)
    e.copy_(e + (1 - decay) * (new - e))


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of a bfloat16 matrix product of 8192 (512 on a CPU)."""
    size, count = (8192, 20) if device.type == "cuda" else (512, 3)
    x = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(2):
        x @ x
    wait()
    began = time.perf_counter()
    for _ in range(count):
        x @ x
    wait()
    return count * 2.0 * size**3 / (time.perf_counter() - began)
