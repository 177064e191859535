"""A text tokenizer that is built when it is first called, so that a model without its files still loads."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from amp.errors import UserError
from amp.towers.base import first_line, quiet


class Tokenizer:
    """texts -> token ids (N, context).

    Args:
        name: of the model, for messages.
        make: builds the library's own function of texts.
        context: ids of a text that the model reads; None where nobody knows.
        vocabulary: the number of ids that the model knows; None where nobody knows.
    """

    def __init__(
        self, name: str, make: Callable[[], Any], context: int | None = None, vocabulary: int | None = None
    ) -> None:
        self.name, self.make, self.context, self.vocabulary = name, make, context, vocabulary

    @cached_property
    def _tokenize(self) -> Any:
        try:
            with quiet():
                return self.make()
        except Exception as error:  # Whatever the files hold, or the hub answers.
            raise UserError(self.name, f"its tokenizer cannot be read ({first_line(error)})") from None

    def __call__(self, texts: list[str]) -> Tensor:
        """Raises UserError where the tokenizer cannot be read, or is not one of the model."""
        try:
            ids_NT: Tensor = self._tokenize(texts)
        except UserError:
            raise
        except Exception as error:  # One without a padding token, or of another kind.
            raise UserError(self.name, f"its tokenizer cannot read texts ({first_line(error)})") from None
        if self.context is not None and ids_NT.shape[1] != self.context:
            raise UserError(
                self.name,
                f"its tokenizer gives {ids_NT.shape[1]} ids per text, but the text tower reads {self.context}",
            )
        if self.vocabulary is not None:
            check_ids(self.name, ids_NT, self.vocabulary)
        return ids_NT


def check_ids(name: str, ids_NT: Tensor, vocabulary: int) -> None:
    """Raises UserError where a text tower does not know one of the ids, as of a tokenizer that is another model's."""
    if ids_NT.numel() and int(ids_NT.max()) >= vocabulary:
        raise UserError(
            name, f"its tokenizer gives the id {int(ids_NT.max())}, but the text tower knows only {vocabulary} ids"
        )
