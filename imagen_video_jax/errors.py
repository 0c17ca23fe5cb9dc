"""What a person did wrong, in one line, and the exit codes of every command."""

DONE = 0
FAILED = 1
WRONG_REQUEST = 2
DIVERGED = 3
TOO_MUCH_BAD_DATA = 4
NO_CHECKPOINT = 5
STOPPED_AFTER_SAVING = 75
WATCHDOG = 124


class UserError(Exception):
    """A request or input that cannot be served: one line that names the value, the limit and the fix.

    The command line prints it as `error: MESSAGE` without a traceback and exits with `exit_code`.
    """

    def __init__(self, message: str, exit_code: int = WRONG_REQUEST):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code
