"""Multi-host start-up: joining the processes that the environment says belong together."""

import os

import jax

from imagen_video_jax.errors import UserError

_SECONDS = 300  # to wait for the others


def start() -> tuple[int, int]:
    """Joins the job's other processes, if it has some; returns (number of this process, how many there are).

    Several processes are meant where JAX_COORDINATOR_ADDRESS is set (with JAX_NUM_PROCESSES and JAX_PROCESS_ID, unless
    jax finds them out, as under Slurm), or where a TPU slice has several hosts.
    """
    several = "JAX_COORDINATOR_ADDRESS" in os.environ or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if several and not jax.distributed.is_initialized():
        numbers = {}
        for field in ("num_processes", "process_id"):
            if (text := os.environ.get(f"JAX_{field.upper()}")) is not None:
                if not text.isdecimal():
                    raise UserError(f"JAX_{field.upper()} must be a whole number, got {text!r}")
                numbers[field] = int(text)
        try:
            jax.distributed.initialize(initialization_timeout=_SECONDS, **numbers)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"cannot join the job's processes: {reason}") from None
    return jax.process_index(), jax.process_count()
