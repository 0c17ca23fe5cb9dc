"""The two sides of `accelerator.py`: this project's train step, and a torch U-Net of equal layers."""
