"""Diffusion as pure functions: schedules, targets, losses, guidance, samplers. No Flax, no I/O."""
