"""The Python reference, from signatures and docstrings."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any, ForwardRef, get_args

__all__ = ["api_page", "documented_names", "losses_page"]

HEAD = """# Python

`import kdpipe` offers four functions; each is imported on first use, so that reading a store
needs neither torch nor time. Shapes are written as jaxtyping has them: `Float[Tensor, "B T V"]`
is a batch of B, T frames or tokens, V classes. Log-probabilities are natural logarithms (nats).
"""

LOSSES_HEAD = """# Losses and searches

Tensors in, tensors or plain objects out: nothing here knows of recipes, stores or files.
[Mathematics](../mathematics.md) says which equation each implements.
"""

MODELS = (
    "kdpipe.checkpoint.ModelBundle",
    "kdpipe.checkpoint.ModelCard",
    "kdpipe.checkpoint.Lineage",
    "kdpipe.models.ModelConfig",
    "kdpipe.text.tokenizer.Tokenizer",
    "kdpipe.corpus.utterance.Utterance",
)
SEARCHES = (
    "kdpipe.search.ctc_greedy.ctc_greedy",
    "kdpipe.search.ctc_greedy.GreedyHypothesis",
    "kdpipe.search.mask_ctc.mask_ctc_search",
    "kdpipe.search.mask_ctc.NarHypothesis",
    "kdpipe.search.joint_beam.joint_beam_search",
    "kdpipe.search.joint_beam.ArHypothesis",
)

MADE_ELSEWHERE = {"TeacherStore", "Tokenizer"}
"""Classes that other functions make: their constructors are of no use to anybody else."""


def api_page() -> str:
    """What a user of kdpipe imports."""
    return "\n".join(
        [
            HEAD,
            *_entries(_exports("kdpipe")),
            "## Models and utterances\n",
            *_entries(MODELS, "###"),
            "## Stores\n",
            "`kdpipe.store` imports no torch.\n",
            *_entries(_exports("kdpipe.store"), "###"),
            "## Errors\n",
            "All are named `kdpipe.errors.NAME`, are a `KdpipeError`, carry their data as"
            " attributes, and say in `message` what is wrong and in `remedy` what to do.\n",
            _errors(),
        ]
    )


def losses_page() -> str:
    """The rooms that a researcher calls directly."""
    return "\n".join(
        [
            LOSSES_HEAD,
            "## Losses\n",
            *_entries(_exports("kdpipe.losses"), "###"),
            "## Searches\n",
            *_entries(SEARCHES, "###"),
        ]
    )


def documented_names() -> list[str]:
    """Every dotted name that the two pages describe."""
    errors = [f"kdpipe.errors.{name}" for name in _error_names()]
    exports = [name for room in ("kdpipe", "kdpipe.store", "kdpipe.losses")
               for name in _exports(room)]  # fmt: skip
    return [*exports, *MODELS, *SEARCHES, *errors]


def _exports(module: str) -> list[str]:
    return [f"{module}.{name}" for name in importlib.import_module(module).__all__]


def _entries(names: Iterable[str], heading: str = "##") -> Iterator[str]:
    for name in names:
        module, _, attribute = name.rpartition(".")
        yield _entry(name, getattr(importlib.import_module(module), attribute), heading)


def _entry(name: str, value: Any, heading: str) -> str:
    title = f"{heading} {name}\n"
    if inspect.isclass(value):
        return "\n".join([title, *_class(name.rpartition(".")[2], value)])
    if inspect.isroutine(value):
        return "\n".join([title, _signature(name.rpartition(".")[2], value), _text(value)])
    shown = f"Literal{list(get_args(value))}" if get_args(value) else _shortened(repr(value))
    return "\n".join([title, f"```python\n{name.rpartition('.')[2]} = {shown}\n```\n"])


def _shortened(text: str) -> str:
    return text if len(text) <= 150 else f"{text[:60]}..."


def _class(name: str, cls: type[Any]) -> Iterator[str]:
    fields = _fields(cls)
    if fields:
        yield _fence(f"class {name}", fields)
    elif name in MADE_ELSEWHERE:
        yield f"```python\nclass {name}\n```\n"
    else:
        yield _signature(f"class {name}", cls)
    yield _text(cls)
    public = {key: value for key, value in vars(cls).items() if not key.startswith("_")}
    yield "\n".join(
        f"- `{key}`: {_first_line(value)}"
        for key, value in public.items()
        if isinstance(value, property | functools.cached_property)
    )
    yield ""
    for attribute, value in public.items():
        if isinstance(value, classmethod) or (inspect.isfunction(value) and _own(value)):
            owner = f"{name}." if isinstance(value, classmethod) else ""
            yield _signature(owner + attribute, getattr(cls, attribute))
            yield _text(value)


def _own(function: Any) -> bool:
    """Whether it was written here; dataclasses and named tuples add methods of their own."""
    return bool(function.__doc__) and function.__module__.startswith("kdpipe")


def _fields(cls: type[Any]) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [_field(field) for field in dataclasses.fields(cls)]
    if issubclass(cls, tuple):
        kinds = inspect.get_annotations(cls)
        return [f"{name}: {_annotation(kind)}" for name, kind in kinds.items()]
    return []


def _field(field: dataclasses.Field[Any]) -> str:
    text = f"{field.name}: {_annotation(field.type)}"
    if field.default is not dataclasses.MISSING:
        return f"{text} = {field.default!r}"
    return text if field.default_factory is dataclasses.MISSING else f"{text} = ..."


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    items = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in items:
            items.append("*")
        items.append(_parameter(parameter))
    returned = inspect.Signature.empty if inspect.isclass(function) else signature.return_annotation
    arrow = "" if returned is inspect.Signature.empty else f" -> {_annotation(returned)}"
    return _fence(name, [item for item in items if item != "self"], arrow)


def _parameter(parameter: inspect.Parameter) -> str:
    text = parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not inspect.Parameter.empty:
        text += f" = {parameter.default!r}"
    return text


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return annotation.replace("'", '"')
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation)


def _fence(name: str, items: list[str], arrow: str = "") -> str:
    short = f"{name}({', '.join(items)}){arrow}"
    if len(short) > 90:
        short = f"{name}(\n" + "".join(f"    {item},\n" for item in items) + f"){arrow}"
    return f"```python\n{short}\n```\n"


def _text(value: Any) -> str:
    """A docstring as Markdown: the errors of a `Raises:` section become a list."""
    text = (inspect.getdoc(value) or "").replace("Raises:\n", "Raises:\n\n")
    return re.sub(r"^    (\w+Error): ", r"- `\1`: ", text, flags=re.MULTILINE) + "\n"


def _first_line(value: Any) -> str:
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def _errors() -> str:
    rows = []
    for name in _error_names():
        cls = getattr(importlib.import_module("kdpipe.errors"), name)
        builtin = next(base for base in cls.__mro__ if base.__module__ == "builtins")
        rows.append(f"| `{name}` | `{builtin.__name__}` | {_first_line(cls)} |")
    return "\n".join(["| error | also a | when |", "|---|---|---|", *rows, ""])


def _error_names() -> list[str]:
    module = importlib.import_module("kdpipe.errors")
    return [name for name in module.__all__ if inspect.isclass(getattr(module, name))]
