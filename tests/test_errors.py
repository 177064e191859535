"""Laws of the errors: a key and a text, placed on the way up and never edited; they pass between processes."""

import os
import pickle

import pytest

from amp.errors import StoppedError, UserError, nearest, several, under


def _placed(error: UserError, *places: tuple[str, str | None]) -> UserError:
    """The error as it is once it has passed `under(...)`, the innermost place first."""
    with pytest.raises(UserError) as caught:
        _raise_under(error, list(places))
    return caught.value


def _raise_under(error: UserError, places: list[tuple[str, str | None]]) -> None:
    if not places:
        raise error
    place, instead_of = places[-1]
    with under(place, instead_of):
        _raise_under(error, places[:-1])


@pytest.mark.parametrize(
    ("places", "key"),
    [
        ([], "model.name"),
        ([("a.yaml", None)], "a.yaml: model.name"),
        ([("teacher", "model")], "teacher.name"),
        ([("--model", "model.name")], "--model"),
        ([("teacher", "model.pretrained")], "model.name"),
        ([("teacher", "mod")], "model.name"),
        ([("teacher", "model"), ("a.yaml", None)], "a.yaml: teacher.name"),
    ],
)
def test_places_change_the_key_and_nothing_else(places: list[tuple[str, str | None]], key: str) -> None:
    found = _placed(UserError("model.name", "no 'model.name'", rank_local=True), *places)
    assert (found.key, found.text, found.rank_local) == (key, "no 'model.name'", True)
    assert str(found) == f"{key}: no 'model.name'"


def test_several_are_one_line() -> None:
    asks = f"1{nearest('criterium', ['criterion'])}"
    assert str(several([UserError("a", "1"), UserError("b", "2")])) == "a: 1; b: 2"
    assert str(several([UserError("a", asks), UserError("b", "2")])) == "a: 1; did you mean 'criterion'? b: 2"


def test_they_pass_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UserError("a", "b", rank_local=True)))
    assert (error.key, error.text, error.rank_local) == ("a", "b", True)
    stop = pickle.loads(pickle.dumps(StoppedError("c", 143)))
    assert (str(stop), stop.code) == ("c", 143)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb\u2028c", "a\\nb\\u2028c"),
        (os.fsdecode(b"a\xff.png"), "a\\udcff.png"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"),
        ("é 犬 a\u00a0b", "é 犬 a\u00a0b"),
    ],
)
def test_any_name_of_a_file_is_shown_on_one_line(name: str, shown: str) -> None:
    assert str(UserError(name, "missing")) == f"{shown}: missing"
    shown.encode()
