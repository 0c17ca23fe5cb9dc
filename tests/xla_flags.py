"""XLA flags for tests, which compile much and compute little."""

import importlib.metadata


def quick_to_compile(devices: int) -> str:
    """So many forced CPU devices; unoptimised code, ready in a third of the time. Set before jax is imported."""
    flags = [
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # On a busy machine devices wait long for each other; after 40 s XLA would end the process.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
    # The older kind of code is ready sooner; a newer XLA ends the process for a flag that it does not know.
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    return " ".join([*flags, "--xla_cpu_use_fusion_emitters=false"] if version < (0, 11) else flags)
