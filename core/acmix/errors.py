"""Exceptions raised for input that the caller can mend."""


class InputError(ValueError):
    """Bad input a user can mend; the message names the argument, the value and the remedy."""


class CheckpointError(InputError):
    """A checkpoint file that is missing, damaged, refused or without weights."""


class BackendError(InputError):
    """No backend, or not the one that was named, can run a call."""
