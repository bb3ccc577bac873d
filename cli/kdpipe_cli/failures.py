"""Which exceptions are the user's to mend, and what to tell them; all others are bugs."""

from __future__ import annotations

import errno

from kdpipe.errors import KdpipeError

__all__ = ["explain"]

RIGHTS = "Give a path that you may use, or change its rights, then run the same command again"
ROOM = "Make room or give another path, then run the same command again"
CHECK = "Check the path, or give another"
REMEDIES = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
    errno.EROFS: RIGHTS,
    errno.ENOTDIR: CHECK,
    errno.EISDIR: CHECK,
    errno.EEXIST: CHECK,
    errno.ENOTEMPTY: CHECK,
    errno.ELOOP: CHECK,
    errno.ENAMETOOLONG: "Give a shorter path",
    errno.EIO: "The disk fails: check it, then run the same command again",
    errno.ESTALE: "The network disk went away: mount it, then run the same command again",
    errno.EMFILE: "Raise the limit of open files (ulimit -n), then run the same command again",
    errno.ENFILE: "Close other programs, then run the same command again",
}
MEMORY = (
    "Lower teacher.training.batch_frames or student.training.batch_frames (training),"
    " --batch-frames (teacher-dump) or --batch-size (decode) and give another --out, or run the"
    " same command again on a machine with more memory"
)
WORKERS = (
    "Give shared memory (/dev/shm; docker run --shm-size=2g) or set teacher.training.workers or"
    " student.training.workers to 0, then run the same command again"
)
NO_MEMORY = (
    "DefaultCPUAllocator: can't alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


def explain(error: BaseException) -> tuple[str, str] | None:
    """Message and remedy of an error that a user can mend; None for a bug."""
    if isinstance(error, KdpipeError):
        return error.message, error.remedy
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        return str(error).partition(". ")[0], WORKERS
    if _out_of_memory(error):
        return "the memory is full", MEMORY
    if isinstance(error, OSError) and error.errno in REMEDIES:
        where = f"{error.filename}: " if error.filename else "cannot write: "
        return f"{where}{error.strerror}", REMEDIES[error.errno]
    return None


def _out_of_memory(error: BaseException) -> bool:
    """torch's own errors are known by name: importing torch here would cost seconds."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
