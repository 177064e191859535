"""How far a search is, or several searches one after another: one count of the probes for all of them."""

from amp.run.console import progress


class SearchProgress:
    """Told by block and, where there is more than one search, by search: `sizing 3 of about 8, block 5 of 12`.

    Args:
        word: what a search is one of.
        num_probes: of one search at most.
        num_searches: that there are, or about.
    """

    def __init__(self, word: str, num_probes: int, num_searches: int = 1) -> None:
        self._word, self._num_probes, self._num_searches = word, num_probes, num_searches
        self._search = 0
        self._bar = progress(None, word, "measurement", num_probes * num_searches)

    def next(self) -> "SearchProgress":
        """Of the search that begins now."""
        self._bar.update(self._search * self._num_probes - self._bar.n)
        self._search += 1
        if self._search > self._num_searches:
            self._num_searches = self._search
            self._bar.total = self._search * self._num_probes
        return self

    def block(self, number: int, of: int, done: int) -> None:
        """That the search has come to a block, numbered from 1, and what share of its probes is done or needless."""
        about = "about " if self._word == "sizing" else ""
        which = f"{self._word} {self._search} of {about}{self._num_searches}, " if self._num_searches > 1 else ""
        self._bar.set_description_str(f"{which}block {number} of {of}")
        self._bar.update((self._search - 1) * self._num_probes + done - self._bar.n)

    def probe(self, words: str) -> None:
        """That one is measured."""
        self._bar.set_postfix_str(words)
        self._bar.update()

    def close(self) -> None:
        """After the last search."""
        self._bar.close()
