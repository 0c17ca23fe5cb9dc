"""`python -m imagen_video_jax COMMAND`."""

import sys

from imagen_video_jax.cli import main

sys.exit(main())
