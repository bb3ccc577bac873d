"""Shape and type checks are on for every test; shared corpora are found or the test skips."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before any test module imports kdpipe: every jaxtyping annotation is then checked at run time.
install_import_hook("kdpipe", "beartype.beartype")

# The same examples on every machine, however slow; --hypothesis-profile explore looks for more.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell makes what it starts in the background deaf to Ctrl-C, children included: tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `corpora/` and `golden/` ($KDPIPE_SHARED, default ../shared)."""
    folder = Path(os.environ.get("KDPIPE_SHARED", REPOSITORY.parent / "shared")).resolve()
    if not ((folder / "corpora").is_dir() and (folder / "golden").is_dir()):
        pytest.skip(f"no corpora/ and golden/ at {folder}: set KDPIPE_SHARED to run this test")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY
