"""What sizes a network may have."""

import pytest

from imagen_video_jax.models.video_unet import VideoUNetConfig


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"channels": (64, 128), "head_width": 24}, r"network\.channels\[1\] 128 is not divisible by its 5 heads"),
        ({"embedding_width": 200}, r"network\.embedding_width 200 is not divisible by its 3 heads"),
    ],
)
def test_widths_that_heads_do_not_divide_are_refused_by_name(fields, says):
    with pytest.raises(ValueError, match=says):
        VideoUNetConfig(**fields)
