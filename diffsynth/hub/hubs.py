"""The hubs of one job: which of them answer, and what they say that repositories hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from diffsynth.errors import InvalidRequest, printable
from diffsynth.hub.catalog import Line
from diffsynth.hub.listing import Listing, RemoteFile
from diffsynth.hub.patience import Disturbed, HubDown, Pauses, Refusal, Silence, bounded
from diffsynth.hub.probe import probe
from diffsynth.hub.record import Record
from diffsynth.hub.settings import Patience
from diffsynth.hub.sources import SOURCES, Source

logger = logging.getLogger(__name__)

FAILURES = 3


@dataclass
class _State:
    """What is known of a hub in this job."""

    make: Callable[[], Source]
    source: Source | None = None
    down: str = ""
    failures: int = 0
    asked: dict[tuple[str, str | None], Listing | str] = field(default_factory=dict)


class Hubs:
    """Asks hubs, each question once; a hub that does not answer is passed over from then on.

    Args:
        names: the hubs, those to be asked first in front.
        record: what they said earlier.
        patience: how long to wait for them.
        anew: whether only what they say now counts.

    Raises:
        InvalidRequest: there is no such hub.
    """

    def __init__(self, names: Sequence[str], record: Record, patience: Patience, *, anew: bool = False) -> None:
        known = {name.lower(): name for name in SOURCES}
        if unknown := [name for name in names if name.lower() not in known]:
            raise InvalidRequest(f"there is no hub called {printable(unknown[0])!r}; known are {', '.join(SOURCES)}.")
        self.names = tuple(dict.fromkeys(known[name.lower()] for name in names))
        if not self.names:
            raise InvalidRequest(f"name a hub to ask: {' or '.join(SOURCES)}.")
        self._record, self._patience, self._anew = record, patience, anew
        self._states = {name: _State(SOURCES[name]) for name in self.names}

    def source(self, name: str) -> Source:
        """Return a hub that answers.

        Raises:
            HubDown: it does not.
        """
        state = self._states[name]
        if state.down:
            raise HubDown(state.down)
        if state.source is None:
            source = state.make()
            try:
                probe(source, self._patience)
            except HubDown as error:
                self.pass_over(name, str(error))
                raise
            state.source = source
        return state.source

    def pass_over(self, name: str, reason: str) -> None:
        """Ask this hub nothing more in this job, and say so once."""
        if not self._states[name].down:
            self._states[name].down = reason
            logger.warning("%s is passed over: %s.", name, reason)

    def note_failure(self, name: str, reason: str) -> None:
        """Count a file that was tried to the end; a hub that fails at several in a row is passed over."""
        self._states[name].failures += 1
        if self._states[name].failures == FAILURES:
            self.pass_over(name, reason)

    def note_success(self, name: str) -> None:
        """Forget earlier failures of a hub."""
        self._states[name].failures = 0

    def listing(self, name: str, repository: str, revision: str | None) -> Listing:
        """Return what a hub says that a repository holds.

        Raises:
            Refusal: it does not say; the message has the reason.
        """
        asked = self._states[name].asked
        key = (repository, revision)
        if key not in asked:
            try:
                found = self._told(name, repository, revision)
            except HubDown as error:
                self.pass_over(name, str(error))
                asked[key] = str(error)
            except (Refusal, Silence) as error:
                asked[key] = f"{repository}: {error}"
            else:
                asked[key] = found
                self._record.put(name, repository, revision, found)
        answer = asked[key]
        if isinstance(answer, str):
            raise Refusal(answer)
        return answer

    def _told(self, name: str, repository: str, revision: str | None) -> Listing:
        source = self.source(name)
        pauses = Pauses(self._patience, f"{name}: {repository}")
        while True:
            try:
                return bounded(lambda: source.listing(repository, revision), self._patience.silence)
            except Disturbed as hiccup:
                pauses.wait(hiccup)

    def asked_or_remembered(self, name: str, line: Line) -> Listing | None:
        """Return what a hub said about a line's repository, in this job or an earlier one, or None."""
        repository = line.repositories.get(name)
        if repository is None:
            return None
        answer = self._states[name].asked.get((repository, line.revision))
        if isinstance(answer, Listing) or self._anew:
            return answer if isinstance(answer, Listing) else None
        return self._record.get(name, repository, line.revision)

    def offers(self, line: Line, path: str) -> Iterator[RemoteFile]:
        """Yield what the hubs said about one file, in this job or an earlier one."""
        for name in self.names:
            listing = self.asked_or_remembered(name, line)
            if listing is not None and path in listing.by_path:
                yield listing.by_path[path]
