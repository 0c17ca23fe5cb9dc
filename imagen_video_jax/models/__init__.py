"""The Video U-Net, bottom up: layers, attention, blocks, network."""
