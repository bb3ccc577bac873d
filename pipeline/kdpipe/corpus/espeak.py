"""espeak-ng through ctypes."""

from __future__ import annotations

import _ctypes
import ctypes
import locale
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdpipe.errors import DataError, DependencyError

__all__ = ["ESPEAK_RATE", "Voice", "require_espeak", "speak"]

ESPEAK_RATE = 22050
# Values of speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POSITION_CHARACTER = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
# The default volume of 100 clips with some voices.
QUIET = 50
Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Voice:
    """How to speak: an espeak-ng voice with variant (`en-us+m3`), words a minute, and pitch and
    pitch range from 0 to 99.
    """

    name: str
    words_per_minute: int = 175
    pitch: int = 50
    pitch_range: int = 50


def require_espeak() -> ModuleType:
    """The loader package; `DependencyError` when it is not installed."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise DependencyError("espeakng-loader", "demo", "synthesising speech") from error
    module: ModuleType = espeakng_loader
    return module


def speak(text: str, voice: Voice) -> NDArray[np.int16]:
    """Samples at 22050 Hz; the same for the same text and voice, whatever was spoken before.

    (Not with breathy variants: the library computes their noise from memory it never set.)
    Loading it anew takes about 5 ms a call, and is what resets its state. Not thread-safe.
    Raises `DependencyError` without espeakng-loader, `DataError` when the library refuses the
    voice or says nothing.
    """
    samples: list[NDArray[np.int16]] = []

    def receive(wave: Any, count: int, _events: object) -> int:
        if wave and count > 0:
            samples.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    # Held here: the library keeps only an address.
    callback = Callback(receive)
    with _fresh_library() as library:
        library.espeak_SetSynthCallback(callback)
        _choose(library, voice)
        encoded = text.encode("utf-8") + b"\0"
        refused = library.espeak_Synth(
            encoded, len(encoded), 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None
        )
    if refused or not samples:
        raise DataError(f"espeak-ng, {text!r}", "nothing was spoken", "Choose another text")
    return np.concatenate(samples)


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    """The library as just loaded: its static noise and phase state would outlive a Terminate."""
    loader = require_espeak()
    before = locale.setlocale(locale.LC_CTYPE)
    library = ctypes.CDLL(loader.get_library_path())
    try:
        # Breathy voices draw their noise from the C library.
        ctypes.CDLL(None).srand(1)
        data = str(loader.get_data_path()).encode("utf-8")
        rate = library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, INITIALIZE_DONT_EXIT)
        if rate != ESPEAK_RATE:
            raise DataError(str(loader.get_data_path()), "espeak-ng does not start", "Reinstall it")
        yield library
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
        locale.setlocale(locale.LC_CTYPE, before)


def _choose(library: ctypes.CDLL, voice: Voice) -> None:
    if library.espeak_SetVoiceByName(voice.name.encode("utf-8")):
        raise DataError(f"espeak-ng, {voice.name!r}", "no such voice", "Choose another")
    settings = {
        RATE: voice.words_per_minute,
        VOLUME: QUIET,
        PITCH: voice.pitch,
        RANGE: voice.pitch_range,
    }
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, value, 0)
