"""A small grammar of English commands, errands and numbers for the synthetic corpus."""

from __future__ import annotations

import re

import numpy as np

__all__ = ["make_sentence", "vocabulary"]

# Some words sound alike (two/to, eight/ate, red/read): only the sentence around them tells.
CLASSES = {
    "name": "ALICE ANNA BEN CLARA DAVID EMMA FRANK GRACE HENRY JULIA KEVIN LAURA MARTIN NORA OSCAR"
    " PETER ROSA SIMON TINA VICTOR",
    "number": "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN FOURTEEN"
    " FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY"
    " NINETY",
    "digit": "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE",
    "adjective": "RED BLUE GREEN YELLOW BLACK WHITE BROWN OLD NEW SMALL LARGE HEAVY LIGHT BROKEN"
    " EMPTY CLEAN WET CHEAP",
    "thing": "APPLE BASKET BOOK BOTTLE BOX CAMERA CHAIR CLOCK COAT CUP DESK FLOWER GUITAR HAMMER"
    " KEY LADDER LAMP LETTER MIRROR PAPER PENCIL PLATE RADIO SHIRT SPOON TABLE TICKET TOWEL"
    " UMBRELLA WALLET",
    "things": "APPLES BASKETS BOOKS BOTTLES BOXES CHAIRS COATS CUPS FLOWERS KEYS LAMPS LETTERS"
    " PENCILS PLATES SHIRTS SPOONS TICKETS TOWELS",
    "place": "KITCHEN GARDEN OFFICE LIBRARY STATION MARKET BRIDGE RIVER SCHOOL HOSPITAL HOTEL"
    " MUSEUM CASTLE FOREST HARBOUR CELLAR BALCONY CHURCH",
    "put": "BRING CARRY FIND HIDE LEAVE MOVE PAINT PUT TAKE WASH",
    "did": "ATE BOUGHT COUNTED DREW FOUND LOST READ SAW SOLD STOLE",
    "where": "BEHIND UNDER NEAR BESIDE INSIDE OPPOSITE",
    "day": "MONDAY TUESDAY WEDNESDAY THURSDAY FRIDAY SATURDAY SUNDAY",
    "month": "JANUARY MARCH APRIL JUNE AUGUST OCTOBER DECEMBER",
    "time": "MORNING AFTERNOON EVENING NIGHT",
    "go": "DRIVE FLY HURRY RETURN SAIL WALK",
    "device": "HEATING VOLUME ALARM OVEN LIGHTS FAN",
    "state": "ON OFF UP DOWN",
    "unit": "PERCENT DEGREES MINUTES HOURS",
}
WORDS = {name: tuple(words.split()) for name, words in CLASSES.items()}
TEMPLATES = (
    "{put} THE {adjective} {thing} {where} THE {place}",
    "{put} THE {thing} TO THE {place} THIS {time}",
    "{name} {did} {number} {adjective} {things} {where} THE {place}",
    "{name} {did} THE {thing} AND THE {adjective} {thing}",
    "{name} AND {name} WILL {go} TO THE {place} ON {day}",
    "MEET {name} {where} THE {place} AT {number} {number}",
    "WHERE IS THE {adjective} {thing} THAT {name} {did}",
    "IS THE {thing} {where} THE {place} OR THE {place}",
    "SET THE {device} TO {number} {unit}",
    "TURN THE {device} {state} AT {number} IN THE {time}",
    "CALL {name} ON {digit} {digit} {digit} {digit} {digit}",
    "THE {thing} COSTS {number} DOLLARS AND {number} CENTS",
    "{name} WILL {go} HOME ON {day} THE {number} OF {month}",
    "WAIT {number} {unit} THEN {put} THE {thing}",
)
SLOT = re.compile(r"\{(\w+)\}")


def make_sentence(generator: np.random.Generator) -> str:
    """One sentence in capitals, 5 to 11 words; every template and every filling is as likely."""

    def fill(slot: re.Match[str]) -> str:
        words = WORDS[slot[1]]
        return words[generator.integers(len(words))]

    return SLOT.sub(fill, TEMPLATES[generator.integers(len(TEMPLATES))])


def vocabulary() -> set[str]:
    """Every word that `make_sentence` can use."""
    fixed = {word for template in TEMPLATES for word in SLOT.sub(" ", template).split()}
    return fixed.union(*WORDS.values())
