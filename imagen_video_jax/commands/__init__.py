"""One file per command of `imagen-video`: its help line, its arguments and what it calls."""
