"""`Batch`: the only thing that passes from data to training."""

import dataclasses

import jax
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Captioned clips of one shape; an image is a clip of one frame.

    Attributes:
      video_BTHWC: uint8 RGB. uint8 because a batch crosses from host to device: a quarter of the bytes of float32.
      text_BLD: float32 token states of the frozen text encoder.
      text_mask_BL: bool, True at real tokens.
      fps_B: float32 frames per second of the clip as given (0 for an image).
      id_B: int32 number of the example in its data set, for logs.
      valid_B: bool, False for the padding of a last, partial evaluation batch.
    """

    video_BTHWC: Array
    text_BLD: Array
    text_mask_BL: Array
    fps_B: Array
    id_B: Array
    valid_B: Array

    def __len__(self) -> int:
        return self.video_BTHWC.shape[0]

    def check(self) -> "Batch":
        """Raises ValueError, naming the field, when shapes or dtypes do not fit together; returns itself."""
        B, _, _, _, C = self.video_BTHWC.shape
        L = self.text_mask_BL.shape[-1]
        expected = {
            "video_BTHWC": ((*self.video_BTHWC.shape[:4], 3), np.uint8),
            "text_BLD": ((B, L, self.text_BLD.shape[-1]), np.float32),
            "text_mask_BL": ((B, L), np.bool_),
            "fps_B": ((B,), np.float32),
            "id_B": ((B,), np.int32),
            "valid_B": ((B,), np.bool_),
        }
        for name, (shape, dtype) in expected.items():
            value = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(f"Batch.{name}: expected {dtype.__name__}{shape}, got {value.dtype}{value.shape}")
        return self
