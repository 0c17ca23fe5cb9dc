"""A convolution whose kernel gradient is a matrix product for each of the kernel's pixels on a CPU.

XLA's CPU convolution for the gradient of a 3x3 kernel reaches half of what its forward pass does. Measured on two
cores, jax 0.10.2, GFLOP/s of the convolution and of the products, lowest and highest of two or three runs:

    inputs, outputs   convolution   products        inputs, outputs   convolution   products
            64, 128         21-38      48-85               128, 128         52-54      86-93
            128, 64         22-33      29-38               256, 128         53-66      50-82
             64, 64         27-36      26-34               256, 256         61-67    102-110
"""

import functools

import jax
import jax.numpy as jnp

# Of inputs and outputs: the smaller number at least, and the larger.
LEAST_CHANNELS = (64, 128)


def convolve(x_NHWC: jax.Array, kernel: jax.Array, stride: int, padding) -> jax.Array:
    """Convolution of images with kernel (kh, kw, in, out); padding as ((before, after) of H, of W)."""
    if stride == 1 and all(own >= least for own, least in zip(sorted(kernel.shape[2:]), LEAST_CHANNELS)):
        return _convolve(x_NHWC, kernel, padding)
    return _plain(x_NHWC, kernel, stride, padding)


def _plain(x_NHWC, kernel, stride: int, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x_NHWC, kernel, (stride, stride), padding, dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x_NHWC, kernel, padding):
    return _plain(x_NHWC, kernel, 1, padding)


def _forward(x_NHWC, kernel, padding):
    return _plain(x_NHWC, kernel, 1, padding), (x_NHWC, kernel)


def _backward(padding, saved, gradient_NHWC):
    x_NHWC, kernel = saved
    # Transposed, not differentiated: what counts FLOPs in the jaxpr would count two forward passes that nothing reads.
    x_gradient = jax.linear_transpose(lambda x: _plain(x, kernel, 1, padding), x_NHWC)

    def by_convolution(x_NHWC, gradient_NHWC):
        return jax.linear_transpose(lambda kernel: _plain(x_NHWC, kernel, 1, padding), kernel)(gradient_NHWC)[0]

    # Decided when the program is lowered: what is compiled here may be for a TPU.
    kernel_gradient = jax.lax.platform_dependent(
        x_NHWC,
        gradient_NHWC,
        cpu=functools.partial(_by_product, padding=padding, size=kernel.shape[:2]),
        default=by_convolution,
    )
    return *x_gradient(gradient_NHWC), kernel_gradient


def _by_product(x_NHWC, gradient_NHWC, *, padding, size: tuple[int, int]):
    _, H, W, D = gradient_NHWC.shape
    C = x_NHWC.shape[-1]
    padded = jnp.pad(x_NHWC, ((0, 0), *padding, (0, 0)))
    flat = gradient_NHWC.reshape(-1, D)

    def of_pixel(i: int, j: int):
        seen = padded[:, i : i + H, j : j + W].reshape(-1, C)
        return seen.T @ flat if C <= D else (flat.T @ seen).T

    return jnp.stack([of_pixel(i, j) for i in range(size[0]) for j in range(size[1])]).reshape(*size, C, D)


_convolve.defvjp(_forward, _backward)
