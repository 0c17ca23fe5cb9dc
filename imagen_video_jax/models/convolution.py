"""A convolution of images that keeps all cores of a CPU at work.

XLA's CPU library shares a convolution out among threads by output channels, about 64 to a part, and by pixels of one
row, never by rows or images: narrow images of few channels are one core's work. Side by side, with zeros between them,
they are one wide image. Measured on two cores (Zen 4, jax 0.10.2), GFLOP/s of 3x3 kernels, images apart / side by side;
a product of 2048 reaches 172:

    images x pixels   channels   apart  side by side      images x pixels   channels   apart  side by side
       16 x 24 x 40   64 -> 64     102           176         64 x 12 x 20   32 -> 32     109           161
       16 x 24 x 40  128 -> 64     103           182         24 x 12 x 20   48 -> 48     109           188
        4 x 96 x 160  32 -> 32     107           145         128 x 6 x 10   96 -> 96     110           186
       16 x 12 x 20 128 -> 128     188           188         16 x 6 x 10  256 -> 256     206           178
"""

import functools

import jax
import jax.numpy as jnp

from imagen_video_jax.partitioning import sharded

# Channels that make images go side by side: from the first on the copies pay, from the second on two threads are busy
# with images apart. A network's first convolution is below, so that nobody counts a gradient of its images.
NARROW = (32, 128)


def convolve(x_NHWC: jax.Array, kernel: jax.Array, stride: int, padding) -> jax.Array:
    """Convolution of images with kernel (kh, kw, in, out); padding as ((before, after) of H, of W)."""
    keeps_width = sum(padding[1]) == kernel.shape[1] - 1
    if stride == 1 and keeps_width and _narrow(min(kernel.shape[2:])):
        return _convolve(x_NHWC, kernel, padding)
    return _apart(x_NHWC, kernel, stride, padding)


def _apart(x_NHWC, kernel, stride: int, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_NHWC, kernel, (stride, stride), padding, dimension_numbers=layout)


def _side_by_side(x_NHWC, kernel, *, padding):
    N, H, W, C = x_NHWC.shape
    gap = max(padding[1])
    wide = jnp.pad(x_NHWC, ((0, 0), (0, 0), (0, gap), (0, 0))).transpose(1, 0, 2, 3).reshape(1, H, N * (W + gap), C)
    y = _apart(wide, kernel, 1, padding)
    return y.reshape(-1, N, W + gap, kernel.shape[-1])[:, :, :W].transpose(1, 0, 2, 3)


def _on_cpu(on_cpu, otherwise, *inputs):
    # Decided when the program is lowered: what is compiled here may be for a TPU.
    return jax.lax.platform_dependent(*inputs, cpu=on_cpu, default=otherwise)


def _narrow(channels: int) -> bool:
    return NARROW[0] <= channels < NARROW[1]


def _moves(images: int, outputs: int) -> bool:
    # Images of several devices stay where they are.
    return images > 1 and _narrow(outputs) and not sharded("batch")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x_NHWC, kernel, padding):
    apart = functools.partial(_apart, stride=1, padding=padding)
    if not _moves(x_NHWC.shape[0], kernel.shape[-1]):
        return apart(x_NHWC, kernel)
    return _on_cpu(functools.partial(_side_by_side, padding=padding), apart, x_NHWC, kernel)


def _forward(x_NHWC, kernel, padding):
    return _convolve(x_NHWC, kernel, padding), (x_NHWC, kernel)


def _backward(padding, saved, gradient_NHWC):
    x_NHWC, kernel = saved
    # Transposed, not differentiated: what counts FLOPs in the jaxpr would count a forward pass that nothing reads.
    of_kernel = jax.linear_transpose(lambda kernel: _apart(x_NHWC, kernel, 1, padding), kernel)

    def of_images(gradient_NHWC, kernel):
        return jax.linear_transpose(lambda x: _apart(x, kernel, 1, padding), x_NHWC)(gradient_NHWC)[0]

    def side_by_side(gradient_NHWC, kernel):
        around = [(k - 1 - before, k - 1 - after) for k, (before, after) in zip(kernel.shape[:2], padding, strict=True)]
        return _side_by_side(gradient_NHWC, kernel[::-1, ::-1].swapaxes(2, 3), padding=around)

    if not _moves(x_NHWC.shape[0], kernel.shape[2]):
        return of_images(gradient_NHWC, kernel), *of_kernel(gradient_NHWC)
    return _on_cpu(side_by_side, of_images, gradient_NHWC, kernel), *of_kernel(gradient_NHWC)


_convolve.defvjp(_forward, _backward)
