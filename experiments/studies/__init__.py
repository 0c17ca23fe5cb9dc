"""Studies: scripts that answer one question each; the docstring gives the question, the command and what was seen."""
