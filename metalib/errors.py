"""The library's own errors: each message names the thing, the value it had, and what to do."""


class MetalibError(Exception):
    """Any error that metalib raises on purpose. The command line prints it and exits with `exit_code`."""

    exit_code = 1


class BadInput(MetalibError):
    """Something given by the user (a file, a setting, a name) cannot be used."""

    exit_code = 2


class NotFinite(MetalibError):
    """A loss became NaN or infinite while training."""

    exit_code = 3


class Stopped(BaseException):
    """A signal asked the run to stop; what was done is saved. Like KeyboardInterrupt, it is nobody's `Exception`."""

    exit_code = 143  # what shells report for SIGTERM


class LostProcess(MetalibError):
    """Another process of the group is gone, and nothing can be summed up without it."""
