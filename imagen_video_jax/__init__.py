"""Imagen Video (arXiv 2210.02303) in JAX: a text-to-video diffusion cascade, trained, sampled and distilled.

One data path, with little back and forth:

    video file -> source -> clip -> Batch -> Stage.loss -> train step -> loop -> checkpoint -> Cascade -> video file

Seven stages (a base model, temporal and spatial super-resolution) are one class, `stages.stage.Stage`, with seven
configurations. From Python:

    from imagen_video_jax.cascade import Cascade

    cascade = Cascade.load("out/demo/cascade.json")
    video_BTHWC = cascade.sample(["a red circle moves left"], seed=0)

Shape letters, used in names throughout: B batch, T frames, H height, W width, C channels, L text tokens, D width of a
token, N attention heads, K width of a head. `video_BTHWC` on the host is uint8 RGB in [0, 255]; inside the diffusion
code it is float32 in [-1, 1].
"""

__version__ = "0.1.0"
