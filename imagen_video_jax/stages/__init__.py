"""A stage of the cascade: conditioning, network and diffusion joined."""
