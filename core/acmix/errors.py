"""Errors that a user can mend: each message names the thing, its value and the remedy."""


class InputError(ValueError):
    """A bad argument, path, file or setting."""


class CheckpointError(InputError):
    """A file that is not a checkpoint, is damaged, hides code or fits another model."""


class BackendError(InputError):
    """No backend, or not the one that was named, can run a call."""
