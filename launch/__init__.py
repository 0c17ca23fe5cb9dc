"""What starts a command somewhere else."""
