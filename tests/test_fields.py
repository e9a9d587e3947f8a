"""Fields that are declared once: what each refuses, in the words of its declaration."""

from typing import Annotated, ClassVar

import numpy as np
import pytest
from msgspec import Meta, Struct

from art_entropic.fields import field_specs, fields_described, read_struct, set_value, settle

Share = Annotated[float, Meta(ge=0, le=1)]


class Colour(Struct, frozen=True, tag_field="type", tag="colour"):
    depth: Annotated[int, Meta(ge=1)] = 8


class Grey(Struct, frozen=True, tag_field="type", tag="grey"):
    pass


@fields_described
class Picture(Struct, frozen=True, kw_only=True):
    """A picture."""

    REMOVED: ClassVar = {"colours": "`kind` tells it"}

    name: Annotated[str, Meta(description="what it is called")]
    sharpness: Annotated[Share, Meta(description="of its edges")] = 0.5
    size: Annotated[int | None, Meta(ge=2)] = None
    words: Annotated[tuple[str, ...], Meta(extra={"choices": ("a", "b")})] = ()
    numbers: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    kind: Annotated[Colour | Grey | None, Meta(extra={"wish": "a table"})] = None
    flat: bool = False

    def __post_init__(self) -> None:
        settle(self)


def test_values_come_out_as_they_are_declared():
    made = Picture(
        name="a", sharpness=np.float32(0.25), size=np.int64(3), words=["a"], numbers=np.array([1, 2]), flat=np.bool_(1)
    )
    assert made == Picture(name="a", sharpness=0.25, size=3, words=("a",), numbers=(1, 2), flat=True)
    assert (type(made.sharpness), type(made.size), type(made.flat)) == (float, int, bool)
    assert str(Picture(name="a", sharpness=-0.0).sharpness) == "0.0"


@pytest.mark.parametrize(
    "values, error, message",
    [
        ({"sharpness": 2}, ValueError, "`sharpness` must be a number in [0, 1], got 2"),
        ({"sharpness": "x"}, TypeError, "`sharpness` must be a number in [0, 1], got 'x'"),
        ({"sharpness": True}, TypeError, "`sharpness` must be a number in [0, 1], got True"),
        ({"sharpness": float("nan")}, ValueError, "`sharpness` must be finite, got nan"),
        ({"size": 1}, ValueError, "`size` must be a whole number of at least 2, got 1"),
        ({"size": 2.5}, TypeError, "`size` must be a whole number of at least 2, got 2.5"),
        ({"words": ["c"]}, ValueError, "`words` must be one of 'a', 'b', got 'c'"),
        ({"words": "a"}, TypeError, "`words` must be a list of some of 'a', 'b', got 'a'"),
        ({"numbers": [-1]}, ValueError, "`numbers` must be a list of whole numbers, got [-1]"),
        ({"words": {"a"}}, TypeError, "`words` must be a list of some of 'a', 'b' in a fixed order, got {'a'}"),
        ({"sharpness": 10**400}, (TypeError, ValueError), "`sharpness` must be "),
        ({"flat": 1}, TypeError, "`flat` must be True or False, got 1"),
        ({"kind": 3}, TypeError, "`kind` must be a table, got 3"),
        ({"kind": {}}, ValueError, "`kind.type` must be one of 'colour', 'grey', got None"),
        ({"kind": {"type": "grey", "depth": 1}}, ValueError, "`kind.depth` is unknown: no key is allowed here, got 'depth'"),
        ({"kind": {"type": "colour", "depth": 0}}, ValueError, "`kind.depth` must be a whole number of at least 1, got 0"),
        ({"colours": 3}, ValueError, "`colours` is no longer a key: `kind` tells it"),
        ({"Name": "a"}, ValueError, "`Name` is unknown: a key must be one of name, sharpness, size, words, "),
    ],
)
def test_what_a_field_refuses_is_told_by_its_declaration(values, error, message):
    with pytest.raises(error) as caught:
        read_struct(Picture, {"name": "a", **values})
    assert str(caught.value).startswith(message)


def test_a_missing_value_is_asked_for():
    with pytest.raises(ValueError, match="`name` must be a string, got nothing"):
        read_struct(Picture, {})


def test_a_table_becomes_the_struct_that_its_tag_names():
    assert read_struct(Picture, {"name": "a", "kind": {"type": "colour", "depth": 3}}).kind == Colour(depth=3)
    assert Picture(name="a", kind=Grey()).kind == Grey()


@pytest.mark.parametrize(
    "name, word, value",
    [
        ("sharpness", "0.25", 0.25),
        ("size", "7", 7),
        ("words", "a, b", ("a", "b")),
        ("numbers", "1,2", (1, 2)),
        ("flat", "true", True),
    ],
)
def test_words_of_a_command_line_are_read_as_the_field_wants(name, word, value):
    assert field_specs(Picture)[name].from_text(word) == value


def test_a_docstring_tells_the_fields():
    assert "A picture.\n\nArgs:\n    name: what it is called.\n    sharpness: of its edges." in str(Picture.__doc__)


def test_values_are_set_where_dots_lead():
    content = {"a": {"b": 1}, "list": [{"c": 2}]}
    for override in ("a.b=2.5", "list.0.c = true", "new.deep=[1, 2]", "text=no quotes"):
        set_value(content, override)
    with pytest.raises(ValueError, match="`set` must be a value that is not nested so deeply"):
        set_value(content, "a=" + "[" * 5000)
    assert content == {"a": {"b": 2.5}, "list": [{"c": True}], "new": {"deep": [1, 2]}, "text": "no quotes"}
