"""Towers of shapes alone, built once for all tests that only look at them."""

from functools import cache

from amp.settings.model import ModelSettings
from amp.towers import Tower, build_tower


def meta_tower(settings: ModelSettings) -> Tower:
    """The tower of `settings` on the meta device; whoever asks for the same gets the same one."""
    return _build(settings.model_copy(update={"pretrained": None}).model_dump_json())


@cache
def _build(settings: str) -> Tower:
    return build_tower(ModelSettings.model_validate_json(settings), "meta")
