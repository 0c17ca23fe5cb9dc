"""An embedding job that takes half a second, to be killed in the middle; every unit that is begun is logged."""

import time

from imagen_video_jax.data import embed_captions as job
from tests.text.fake_encoder import FakeEncoder

CAPTIONS = [f"caption number {number} of many words" for number in range(400)]


class _Slow(FakeEncoder):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def real_states(self, tokens, dtype, progress=None):
        with open(self.log, "a") as log:
            log.write(self.tokenized[0] + "\n")
        time.sleep(0.01)
        return super().real_states(tokens, dtype, progress)


def run(folder, log, barrier):
    """Fifty units of eight captions, begun when everybody is at the barrier."""
    job.UNIT = 8
    barrier.wait(60)
    job.embed_captions(folder, CAPTIONS, _Slow(log))
