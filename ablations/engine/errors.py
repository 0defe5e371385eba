"""The errors of the engine. Imports nothing of the suite."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Codes of an `OSError` of a disk without room."""
UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS)
"""Codes of a path that cannot be written."""


class StudyError(RuntimeError):
    """A study that does not exist, or that holds something else; the message says what to do."""


class MissingStudyError(StudyError):
    """No study of that name, or no journal, is there."""


class LockedError(StudyError):
    """Somebody has held for long what is held for moments; it may be let go at any time."""


class UnreachableError(StudyError):
    """A database does not answer; it may do so again at any time."""
