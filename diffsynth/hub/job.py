"""Files wanted → files in place: what is there is checked, what is not is fetched, from one hub or the next."""

from __future__ import annotations

import errno
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from diffsynth.errors import DownloadError, printable
from diffsynth.hub.catalog import Line
from diffsynth.hub.hubs import Hubs
from diffsynth.hub.items import Item, Options, item_at, line_items
from diffsynth.hub.listing import Listing, RemoteFile, matches
from diffsynth.hub.part import Part
from diffsynth.hub.patience import Exhausted, HubDown, Refusal
from diffsynth.hub.progress import Progress
from diffsynth.hub.record import Record, is_right
from diffsynth.hub.reuse import Reuse, take
from diffsynth.hub.settings import Patience
from diffsynth.hub.transfer import Origin, fetch

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def gather(lines: Sequence[Line], options: Options) -> list[Item]:
    """Put every file of several lines in place and return them, in the order of the lines.

    Raises:
        DownloadError: some could not be had; the message names each, and why.
        InvalidRequest: there is no such hub, or a setting in the environment is none.
    """
    job = _Job(lines, options)
    try:
        return job.offline() if options.offline else job.remembered() or job.online()
    except OSError as error:
        raise DownloadError(
            f"{printable(error.filename or options.folder, 400)} cannot be written: {error.strerror or error}. "
            "What was fetched is kept; choose another folder with local_dir= (--models), or make this one writable."
        ) from error


class _Job:
    def __init__(self, lines: Sequence[Line], options: Options) -> None:
        self.lines, self.options = lines, options
        self.patience = Patience.from_environment()
        self.again = options.verify
        asks_anew = options.verify and not options.offline
        self.hubs = Hubs(options.hubs, Record(options.folder), self.patience, anew=asks_anew)

    # ---- without asking a hub ----------------------------------------------------------------------------------

    def remembered(self) -> list[Item] | None:
        """Return all files if they are in place as a hub once listed them, without asking any."""
        if self.options.verify:
            return None
        items: list[Item] = []
        for line in self.lines:
            for hub in self.hubs.names:
                listing = self.hubs.asked_or_remembered(hub, line)
                found = line_items(line, listing, self.options) if listing is not None else []
                wanted = [item for item in found if self._wanted(item)]
                if found and all(self._is_right(item) for item in wanted):
                    items += wanted
                    break
            else:
                return None
        return items

    def offline(self) -> list[Item]:
        """Return all files, asking no hub; those that were never listed are taken as they are."""
        items: list[Item] = []
        wrong: list[str] = []
        reuse = Reuse(self.options.reuse)
        for line in self.lines:
            for item in self._items_offline(line):
                if not self._wanted(item):
                    continue
                items.append(item)
                offers = list(self.hubs.offers(line, item.path))
                if not offers and item.target.is_file():
                    logger.warning("%s is used unchecked: offline, and no hub was asked about it before.", item.target)
                elif not self._is_right(item) and self._reused(item, reuse) is None:
                    wrong.append(_what_is_there(item, offers))
        if wrong:
            raise DownloadError(
                f"offline, and {len(wrong)} of {len(items)} files are not in place:"
                + "".join(f"\n  {text}" for text in wrong)
                + f"\nWhere there is a network, `{self.options.command}` fetches them; or unset DIFFSYNTH_OFFLINE and "
                "HF_HUB_OFFLINE here. Files from elsewhere are found with reuse= (--reuse)."
            )
        return items

    def _items_offline(self, line: Line) -> list[Item]:
        for hub in self.hubs.names:
            listing = self.hubs.asked_or_remembered(hub, line)
            if listing is not None and (items := line_items(line, listing, self.options)):
                return items
        folder = self.options.folder / line.folder
        if line.is_pattern:
            here = [path for path in sorted(folder.glob("**/*")) if path.is_file() and not path.match(".*.part")]
            inside = [path.relative_to(folder).as_posix() for path in here]
            names = [name for name in inside if fnmatchcase(name, line.path)]
            none = [Item(line, line.path, folder / line.path)]
            return [item_at(line, name, self.options) for name in names] or none
        return [item_at(line, line.path, self.options)]

    # ---- asking hubs -------------------------------------------------------------------------------------------

    def online(self) -> list[Item]:
        """Return all files, fetching what is not in place."""
        items = [item for line in self.lines for item in self._listed(line) if self._wanted(item)]
        once = {item.target: item for item in items}
        todo = [item for item in once.values() if not self._is_right(item)]
        for item in todo:
            if item.target.is_file():
                logger.warning("%s is not what hubs publish under this name, and is replaced.", item.target)
        sizes = {item.target: next(self.hubs.offers(item.line, item.path)).size for item in todo}
        reuse = Reuse(self.options.reuse)
        with Progress(list(sizes.values()), self.options.on_progress) as progress:
            todo = [item for item in todo if not self._taken(item, reuse, progress)]
            self._check_room(todo, sizes)
            for item in todo:
                self._fetch(item, progress)
        failed = [item for item in todo if item.failed]
        if failed:
            raise DownloadError(self._explained(failed, len(items)))
        return items

    def _listed(self, line: Line) -> list[Item]:
        """Return the files that a line means, as the first hub lists them that has them.

        Raises:
            DownloadError: no hub has them.
        """
        reasons = []
        for hub in self.hubs.names:
            repository = line.repositories.get(hub)
            if repository is None:
                reasons.append(f"{hub} has no repository of it.")
                continue
            try:
                listing = self.hubs.listing(hub, repository, line.revision)
            except Refusal as error:
                reasons.append(f"{hub}: {error}.")
                continue
            if items := line_items(line, listing, self.options):
                return items
            reasons.append(f"{hub}: {repository} holds no {line.path}{_nearest(line.path, listing)}.")
        asked = dict.fromkeys(line.repositories[hub] for hub in self.hubs.names if hub in line.repositories)
        raise DownloadError(
            f"no hub can be asked for {line.path} of {' or '.join(asked)}:"
            + "".join(f"\n  {reason}" for reason in reasons)
            + "\nFiles that are in place already, put there by hand, are used with offline=True (--offline); "
            "`diffsynth env` shows the addresses of the hubs."
        )

    def _taken(self, item: Item, reuse: Reuse, progress: Progress) -> bool:
        """Put a file in place that is elsewhere on this machine, and count it."""
        offer = self._reused(item, reuse)
        if offer is not None:
            progress.begin(item.path)
            progress.end(offer.size)
        return offer is not None

    def _reused(self, item: Item, reuse: Reuse) -> RemoteFile | None:
        """Put a file in place that is elsewhere on this machine, and return as which it was published."""
        for offer in dict.fromkeys(self.hubs.offers(item.line, item.path)):
            for found in reuse.candidates(offer, item.line.repositories.values()):
                if found != item.target.resolve():
                    with Part(item.target, offer) as part:
                        if take(found, part):
                            logger.info("%s was taken from %s", item.target, found)
                            return offer
        return None

    def _check_room(self, todo: Sequence[Item], sizes: dict[Path, int]) -> None:
        """Raise a DownloadError if a disk cannot hold what is missing; a model's folder may be a link to another."""
        needed: Counter[int] = Counter()
        places: dict[int, Path] = {}
        for item in todo:
            place = next(folder for folder in item.target.parents if folder.exists())
            disk = place.stat().st_dev
            places.setdefault(disk, place)
            parts = [Part(item.target, offer).path for offer in self.hubs.offers(item.line, item.path)]
            arrived = max((part.stat().st_size for part in parts if part.is_file()), default=0)
            needed[disk] += max(0, sizes[item.target] - arrived)
        for disk, place in places.items():
            free = shutil.disk_usage(place).free
            if needed[disk] > free:
                raise DownloadError(
                    f"{place} has {free / 1e9:,.2f} GB free, and {needed[disk] / 1e9:,.2f} GB are to be fetched. "
                    "Nothing was fetched. Make room, or choose another folder with local_dir= (--models)."
                )

    def _fetch(self, item: Item, progress: Progress) -> None:
        """Fetch one file from the first hub that gives it, and note in the item why others did not."""
        progress.begin(item.path)
        for hub in self.hubs.names:
            repository = item.line.repositories.get(hub)
            if repository is None:
                continue
            try:
                remote = self.hubs.listing(hub, repository, item.line.revision).by_path.get(item.path)
            except Refusal as error:
                item.failed.append(f"{hub}: {error}.")
                continue
            if remote is None:
                item.failed.append(f"{hub}: {repository} does not hold it.")
                continue
            try:
                self._fetch_from(hub, repository, item, remote, progress)
            except HubDown as error:
                self.hubs.pass_over(hub, str(error))
                item.failed.append(f"{hub}: {error}.")
            except Refusal as error:
                logger.warning("%s: %s: %s.", hub, item.target, error)
                item.failed.append(f"{hub}: {error}.")
                if isinstance(error, Exhausted):
                    self.hubs.note_failure(hub, str(error))
            else:
                item.failed.clear()
                self.hubs.note_success(hub)
                return

    def _fetch_from(self, hub: str, repository: str, item: Item, remote: RemoteFile, progress: Progress) -> None:
        def waiting() -> None:
            logger.warning("%s is being fetched by another process; waiting for it", item.target)

        try:
            with Part(item.target, remote, waiting) as part:
                progress.present(part.size)
                if is_right(item.target, [remote], again=False):  # the other process is done
                    part.restart()
                else:
                    fetch(Origin(self.hubs.source(hub), repository, item.line.revision, remote), part, self.patience,
                          progress.moved)  # fmt: skip
                progress.end(remote.size)
        except OSError as error:
            if error.errno in FULL:
                raise DownloadError(
                    f"there is no room for {item.target}: {error.strerror}. It has {remote.size:,} bytes. What was "
                    f"fetched is kept: make room, then `{self.options.command}` goes on where this stopped."
                ) from error
            raise

    def _wanted(self, item: Item) -> bool:
        return not self.options.files or matches(item.path, self.options.files)

    def _is_right(self, item: Item) -> bool:
        return is_right(item.target, self.hubs.offers(item.line, item.path), again=self.again)

    def _explained(self, failed: Sequence[Item], count: int) -> str:
        lines = [
            f"\n  {item.target}" + "".join(f"\n    {printable(reason, 600)}" for reason in item.failed)
            for item in failed
        ]
        return (
            f"{len(failed)} of {count} files could not be fetched:{''.join(lines)}\n"
            f"`{self.options.command}` goes on where this stopped. Or put the files there by hand and use "
            "offline=True (--offline); `diffsynth env` shows the addresses of the hubs."
        )


def _what_is_there(item: Item, offers: Sequence[RemoteFile]) -> str:
    if not item.target.is_file():
        return f"{item.target}: not there"
    sizes = " or ".join(f"{offer.size:,}" for offer in {offer.size: offer for offer in offers}.values())
    return f"{item.target}: not what was published ({item.target.stat().st_size:,} bytes here, {sizes} there)"


def _nearest(pattern: str, listing: Listing) -> str:
    names = [file.path for file in listing.files if file.path.endswith(pattern.rpartition(".")[2])]
    return f"; it holds {', '.join(printable(name) for name in names[:5])}" if names else ""
