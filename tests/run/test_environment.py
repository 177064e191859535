"""Laws of a process's place: derived where it can be, refused in one line that the process says itself."""

import pytest
import torch
from conftest import refusal

from amp.errors import UserError
from amp.run.console import main_process
from amp.run.processes.environment import Place, place_of
from amp.run.world import World, among, start, world

HERE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LOCAL = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1"}, None),
        (HERE | LOCAL, Place(1, 2, 1, 2, "127.0.0.1", 29500)),
        (HERE, Place(1, 2, 1, 2, "127.0.0.1", 29500)),
        (HERE | {"MASTER_ADDR": "localhost", "RANK": "0"}, Place(0, 2, 0, 2, "localhost", 29500)),
        (
            HERE | {"MASTER_ADDR": "node0", "RANK": "6", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            Place(6, 8, 2, 4, "node0", 29500),
        ),
        (HERE | {"MASTER_ADDR": "node0", "LOCAL_RANK": "0"}, Place(1, 2, 0, 2, "node0", 29500)),
    ],
)
def test_a_place_is_read_or_derived(environment: dict[str, str], place: Place | None) -> None:
    assert place_of(environment) == place


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"RANK": "5"}, "RANK: '5' is not a number from 0 to 1 of WORLD_SIZE 2"),
        *(
            ({"RANK": text}, f"RANK: {text.strip()!r} is not a number")
            for text in ("", "foo", "-1", "1.0", "²", "9" * 50)
        ),
        *(({"WORLD_SIZE": text}, "WORLD_SIZE:") for text in ("", "0", "two", "-2", "1000000000000")),
        *(({"MASTER_PORT": text}, "MASTER_PORT:") for text in ("", "0", "http", "65536")),
        *(({"MASTER_ADDR": text}, "MASTER_ADDR:") for text in ("", " ", "a\nb")),
        *(({"LOCAL_RANK": text}, "LOCAL_RANK:") for text in ("", "2", "x")),
        *(({"LOCAL_WORLD_SIZE": text}, "LOCAL_WORLD_SIZE:") for text in ("", "0", "3")),
        ({"MASTER_ADDR": "node0", "LOCAL_RANK": None, "LOCAL_WORLD_SIZE": None}, "LOCAL_RANK: missing"),
        *(({key: None}, f"{key}: missing") for key in ("RANK", "WORLD_SIZE", "MASTER_PORT")),
    ],
)
def test_a_place_that_cannot_be_is_refused(change: dict[str, str | None], words: str) -> None:
    environment = {key: text for key, text in (HERE | LOCAL | change).items() if text is not None}
    assert refusal(lambda: place_of(environment)).startswith(words)
    with pytest.raises(UserError) as caught:
        place_of(environment)
    assert caught.value.rank_local


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False), ("foo", True), ("7", True)])
def test_a_process_that_does_not_know_its_place_speaks(
    rank: str, speaks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, text in (HERE | {"RANK": rank}).items():
        monkeypatch.setenv(key, text)
    assert main_process() == speaks


def test_a_run_within_another_world_is_in_that_one() -> None:
    other = World(0, 1, torch.device("meta"))
    with among(other), start() as own:
        assert own is other is world()
