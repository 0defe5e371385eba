"""The one error of the engine that a user can do something about."""


class StudyError(RuntimeError):
    """A study that does not exist, that holds something else, or that cannot go on; the message says what to do."""
