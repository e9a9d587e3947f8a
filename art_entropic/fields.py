"""Fields of a msgspec Struct, declared once: checks, error messages, help texts and reading follow from the declaration.

A field is declared as ``Annotated[type, Meta(ge=..., description=...)]``. `Meta.extra` may add what msgspec does not know:

- ``choices``: a collection of the names that are allowed,
- ``wish``: what a value must be, in words, where type and range do not say it well enough,
- ``parse``: a function from text to a value, for what is written in files and on a command line,
- ``convert``: a function from whatever a user may give to the value that is kept; it says itself what is wrong,
- ``option``: the option of the command line; None for no option, and by default the field's own name.

A struct may have a ``REMOVED: ClassVar[Mapping[str, str]]``: keys of an earlier version, each with what took its place.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
from msgspec import NODEFAULT, Meta, Struct

from art_entropic._validate import choice, finite

S = TypeVar("S", bound=Struct)


@dataclass(frozen=True)
class FieldSpec:
    """What a field's declaration says.

    Attributes:
        annotation: the type without None and without the field's own `Meta`.
        is_optional: None is a value.
        default: NODEFAULT where a value must be given.
    """

    name: str
    annotation: Any
    is_optional: bool
    default: Any
    meta: Meta

    @property
    def is_required(self) -> bool:
        return self.default is NODEFAULT

    @property
    def description(self) -> str:
        return self.meta.description or ""

    @property
    def extra(self) -> Mapping[str, Any]:
        return self.meta.extra or {}

    @property
    def choices(self) -> Collection[str] | None:
        return self.extra.get("choices")

    @property
    def option(self) -> str | None:
        """The option of the command line, for a switch the one that turns it off; None where there is none."""
        prefix = "--no-" if self.annotation is bool else "--"
        option: str | None = self.extra.get("option", f"{prefix}{self.name.replace('_', '-')}")
        return option

    @property
    def member(self) -> Any:
        """The type of the members of a tuple of any length; None for what is no tuple."""
        return _unwrapped(get_args(self.annotation)[0])[0] if get_origin(self.annotation) is tuple else None

    @property
    def structs(self) -> tuple[type[Struct], ...]:
        """The structs that a value, or each member of it, may be."""
        return _structs_in(self.member or self.annotation)

    @property
    def wish(self) -> str:
        """What a value must be, in words."""
        if "wish" in self.extra:
            return str(self.extra["wish"])
        if self.choices is not None:
            names = ", ".join(map(repr, self.choices))
            return f"a list of some of {names}" if self.member else f"one of {names}"
        return _words_for(self.annotation, self.meta)

    def check(self, value: Any, name: str) -> Any:
        """A value as the field wants it: numbers of NumPy as Python's own, lists as tuples, tables as structs.

        Args:
            name: what the message calls the field.
        Raises:
            TypeError: of another type.
            ValueError: out of its range, or none of its choices.
        """
        if value is None and self.is_optional:
            return None
        if "convert" in self.extra:
            value = self.extra["convert"](value)
        if self.structs:
            return self._check_structs(value, name)
        if isinstance(value, AbstractSet):
            raise TypeError(f"`{name}` must be {self.wish} in a fixed order, got {value!r}")
        plain = _plain(value)
        if isinstance(plain, str) and "parse" in self.extra:
            plain = self._parsed(plain, name)
        try:
            typed = msgspec.convert(plain, GenericAlias(tuple, (self.member, ...)) if self.member else self.annotation)
        except msgspec.ValidationError as error:
            raise TypeError(f"`{name}` must be {self.wish}, got {value!r}") from error
        if isinstance(typed, float):
            typed = 0.0 if math.copysign(1.0, finite(name, typed)) < 0 and typed == 0 else typed  # no negative zero
        for word in (typed if self.member else (typed,)) if self.choices is not None else ():
            choice(name, word, self.choices or ())
        try:
            msgspec.convert(typed, Annotated[self.annotation, _ranges(self.meta)])
        except msgspec.ValidationError as error:
            raise ValueError(f"`{name}` must be {self.wish}, got {value!r}") from error
        return typed

    def from_text(self, text: str) -> Any:
        """The value that a word of the command line stands for; commas separate the members of a tuple.

        Raises:
            TypeError, ValueError: as for `check`.
        """
        words = [part.strip() for part in text.split(",") if part.strip()] if self.member else text
        if "parse" in self.extra:
            return self.check(text, self.name)
        try:
            kind = GenericAlias(list, (self.member,)) if self.member else self.annotation
            return self.check(msgspec.convert(words, kind, strict=False), self.name)
        except msgspec.ValidationError:
            return self.check(text, self.name)  # which says what is wanted

    def _parsed(self, text: str, name: str) -> Any:
        parse: Callable[[str], Any] = self.extra["parse"]
        try:
            return parse(text)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"`{name}` must be {self.wish}, got {text!r}") from error

    def _check_structs(self, value: Any, name: str) -> Any:
        if not self.member:
            return self._check_struct(value, name)
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"`{name}` must be {self.wish}, got {value!r}")
        return tuple(self._check_struct(one, f"{name}[{number}]") for number, one in enumerate(value))

    def _check_struct(self, value: Any, name: str) -> Struct:
        if isinstance(value, self.structs):
            values = checked(value, f"{name}.")
            return value if values == msgspec.structs.asdict(value) else type(value)(**values)
        if not isinstance(value, Mapping):
            raise TypeError(f"`{name}` must be {self.wish}, got {value!r}")
        return read_union(self.structs, value, name)


@cache
def field_specs(struct: type[Struct]) -> Mapping[str, FieldSpec]:
    """The fields of a struct by name, in their order."""
    hints = get_type_hints(struct, include_extras=True)
    return {field.name: _spec(field, hints[field.name]) for field in msgspec.structs.fields(struct)}


def checked(struct: Struct, where: str = "") -> dict[str, Any]:
    """The values of a struct's fields, each as its declaration wants it.

    Args:
        where: what stands before the fields' names in messages, such as "variants[0].".
    Raises:
        TypeError, ValueError: a value is not what its field wants.
    """
    return {name: spec.check(getattr(struct, name), where + name) for name, spec in field_specs(type(struct)).items()}


def beyond_defaults(struct: Struct) -> dict[str, Any]:
    """The values of a struct that are not its fields' defaults, those of structs in it likewise."""
    found = {
        name: getattr(struct, name) for name, spec in field_specs(type(struct)).items() if getattr(struct, name) != spec.default
    }
    return {name: beyond_defaults(value) if isinstance(value, Struct) else value for name, value in found.items()}


def settle(struct: Struct) -> None:
    """Check the fields of a struct that is just made, and leave in each what its declaration wants: for `__post_init__`.

    Raises:
        TypeError, ValueError: a value is not what its field wants.
    """
    for name, value in checked(struct).items():
        msgspec.structs.force_setattr(struct, name, value)


def read_struct(struct: type[S], values: Mapping[str, Any], where: str = "", *, left_out: Collection[str] = ()) -> S:
    """A struct from the keys and values of a file.

    Args:
        where: what stands before the keys in messages, such as "variants[0].".
        left_out: fields that a file does not set.
    Raises:
        TypeError, ValueError: a key is unknown, removed or missing, or a value is not what its field wants.
    """
    removed: Mapping[str, str] = getattr(struct, "REMOVED", {})
    specs = {name: spec for name, spec in field_specs(struct).items() if name not in left_out}
    for key in values:
        if key in removed:
            raise ValueError(f"`{where}{key}` is no longer a key: {removed[key]}")
        if key not in specs:
            known = f"a key must be one of {', '.join(specs)}" if specs else "no key is allowed here"
            raise ValueError(f"`{where}{key}` is unknown: {known}, got {key!r}")
    found = {key: specs[key].check(value, where + key) for key, value in values.items()}
    for key, spec in specs.items():
        if spec.is_required and key not in found:
            raise ValueError(f"`{where}{key}` must be {spec.wish}, got nothing")
    return struct(**found)


def read_union(structs: tuple[type[S], ...], values: Mapping[str, Any], where: str) -> S:
    """One of several tagged structs from a table, whose key of the tag says which; of one struct no tag is asked."""
    config = structs[0].__struct_config__
    if len(structs) == 1 and config.tag is None:
        return read_struct(structs[0], values, f"{where}.")
    field, tagged = str(config.tag_field), {str(one.__struct_config__.tag): one for one in structs}
    tag = choice(f"{where}.{field}", values.get(field), tagged)
    rest = {key: value for key, value in values.items() if key != field}
    return read_struct(tagged[tag], rest, f"{where}.")


def set_value(content: dict[str, Any], override: str) -> None:
    """Set one value of what was read from a file, in place.

    Args:
        override: "key=value" with a value in TOML, or a text without quotes; dots lead into tables and lists.
    Raises:
        ValueError: it is not of this form, or there is no such place.
    """
    key, separator, text = override.partition("=")
    *path, last = key.strip().split(".")
    if not separator or not last:
        raise ValueError(f"`set` must be KEY=VALUE such as beta=0.1 or schedule.ramp=0.2, got {override!r}")
    try:
        value = msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        value = text.strip()
    except RecursionError as error:
        raise ValueError(f"`set` must be a value that is not nested so deeply, got {override[:40]!r}...") from error
    place: Any = content
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"`set` must name a key or a position that exists, got {override!r}: {error}") from error


def fields_described(struct: type[S]) -> type[S]:
    """Add to the docstring of a struct what its fields' declarations say of them."""
    lines = [f"    {spec.name}: {spec.description}." for spec in field_specs(struct).values()]
    wrapped = [textwrap.fill(line, 120, subsequent_indent=" " * 8) for line in lines]
    struct.__doc__ = "\n".join([f"{inspect.getdoc(struct)}\n\nArgs:", *wrapped])
    return struct


def _spec(field: msgspec.structs.FieldInfo, hint: Any) -> FieldSpec:
    hint, metas = _unwrapped(hint)
    is_optional = NoneType in get_args(hint)
    if is_optional:
        hint, inner = _unwrapped(Union[tuple(one for one in get_args(hint) if one is not NoneType)])  # noqa: UP007
        metas = [*inner, *metas]
    default = field.default if field.default_factory is NODEFAULT else field.default_factory()
    return FieldSpec(field.name, hint, is_optional, default, _merged(metas))


def _unwrapped(hint: Any) -> tuple[Any, list[Meta]]:
    """A type without what `Annotated` adds to it, and that."""
    if get_origin(hint) is not Annotated:
        return hint, []
    kind, *metas = get_args(hint)
    return kind, [meta for meta in metas if isinstance(meta, Meta)]


def _merged(metas: Sequence[Meta]) -> Meta:
    """What several declarations say together; the last one wins."""
    names = ("gt", "ge", "lt", "le", "description")
    said: dict[str, Any] = {name: value for meta in metas for name in names if (value := getattr(meta, name)) is not None}
    return Meta(**said, extra={name: value for meta in metas for name, value in (meta.extra or {}).items()})


def _structs_in(annotation: Any) -> tuple[type[Struct], ...]:
    among = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(one for one in among if isinstance(one, type) and issubclass(one, Struct))


def _ranges(meta: Meta) -> Meta:
    said: dict[str, Any] = {name: getattr(meta, name) for name in ("gt", "ge", "lt", "le")}
    return Meta(**said)


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's own, and collections as lists, which msgspec takes for tuples too."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping)):
        return [_plain(one) for one in value]
    return value


_KINDS = {bool: "True or False", str: "a string", int: "a whole number", float: "a number"}


def _words_for(annotation: Any, meta: Meta) -> str:
    if get_origin(annotation) is tuple:
        return f"a list of {_KINDS[_unwrapped(get_args(annotation)[0])[0]].removeprefix('a ')}s"
    words = _KINDS.get(annotation, "a value of another type")
    if meta.le is not None or meta.lt is not None:
        low = f"({meta.gt}" if meta.gt is not None else f"[{-math.inf if meta.ge is None else meta.ge}"
        high = f"{meta.lt})" if meta.lt is not None else f"{meta.le}]"
        return f"{words} in {low}, {high}"
    if meta.gt == 0:
        return f"{words.replace('a ', 'a positive ', 1)}"
    return words if meta.ge is None else f"{words} of at least {meta.ge}"
