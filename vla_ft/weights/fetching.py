"""``vla-ft fetch``: published weights onto this machine, once, checked; everything after that works offline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vla_ft.errors import UserError
from vla_ft.weights import hub, transfer
from vla_ft.weights.catalogue import Entry, load_catalogue
from vla_ft.weights.places import FileRecord, Record, is_here, place_of, read_record, weights_root
from vla_ft.weights.transfer import Say, size

PINNED = "pinned"
FIRST_USE = "first use"
_WRITE_EVERY = 5.0


def fetch(entry: Entry, to: Path | None = None, say: Say = print) -> Path:
    """Bring an entry's files to ``to`` (default: the weights' root) and return the folder.

    What is here already is checked, file by file, against its record; what is damaged or missing is fetched again. A
    second process waits for the first. Raises UserError for everything a user can mend.
    """
    if entry.by_hand is not None:
        raise UserError(
            f"'{entry.name}' is published on a page for browsers alone: {entry.by_hand}. Download it there and give "
            "the file's path (init.path=FILE). No hash is published: what you get is not checked."
        )
    folder = place_of(entry) if to is None else to
    with transfer.locked(folder, say):
        record = read_record(folder)
        if record is not None:
            _require_same(entry, record, folder)
        wrong = _check(folder, record, say) if record is not None else {}
        if record is not None and record.complete and not wrong:
            say(f"'{entry.name}' is here: {len(record.files)} files, {size(record.bytes)}, all hashes right. {folder}")
            return folder
        if hub.offline():
            raise _offline(entry, folder, wrong)
        for name in wrong:
            (folder / name).unlink(missing_ok=True)
        record = record or _begin(entry, folder, say)
        _bring(entry, record, folder, say)
    return folder


def listing() -> list[tuple[str, str, str, str, str]]:
    """A row for every entry: name, size, licence, state, what it is."""
    rows = []
    for entry in load_catalogue().values():
        try:
            here = is_here(entry)
        except UserError:  # `vla-ft fetch NAME` says what is wrong with its record
            here = None
        if here is None:
            state = "damaged"
        elif here:
            state = "here"
        elif entry.by_hand:
            state = "by hand"
        else:
            state = "gated" if entry.gated else "-"
        expected = entry.expected_bytes
        trust = "" if entry.pinned or entry.by_hand else " (not pinned)"
        rows.append((entry.name, size(expected) if expected else "?", entry.license, state, entry.about + trust))
    return rows


def print_listing(say: Say = print) -> None:
    """The catalogue as aligned lines; the first word of each is what one types."""
    rows = [("NAME", "SIZE", "LICENCE", "STATE", ""), *listing()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    say(f"\nFetched weights are in {weights_root()}; `vla-ft fetch NAME` brings them there.")


def _require_same(entry: Entry, record: Record, folder: Path) -> None:
    """A folder holds one thing, and a pinned revision is that revision. Raises UserError."""
    if record.origin != entry.origin:
        raise UserError(f"{folder} holds {record.origin}, not {entry.origin}. Name another folder with to=DIR.")
    if entry.repository and entry.pinned and record.revision != entry.revision:
        raise UserError(
            f"{folder} holds commit {record.revision} of {entry.origin}, '{entry.name}' is pinned to {entry.revision}. "
            "Remove the folder and fetch it again, or fetch into another with to=DIR."
        )
    for name, known in entry.known.items():
        if name in record.files and not (record.files[name].sha256 or "").startswith(known.sha256 or ""):
            raise _not_the_pin(entry, name, record.files[name], folder.as_posix())


def _check(folder: Path, record: Record, say: Say) -> dict[str, str]:
    """Files that are there but are not what the record says, with what is wrong; or that are missing."""
    wrong = {}
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            if record.complete:
                wrong[name] = "missing"
                say(f"{path} is missing; it will be fetched again.")
            continue
        seen = transfer.measure(path)
        if not transfer.agrees(seen, expected):
            wrong[name] = transfer.describe(seen)
            say(f"{path} is damaged: {wrong[name]}, expected {transfer.describe(expected)}.")
    return wrong


def _begin(entry: Entry, folder: Path, say: Say) -> Record:
    """Ask what there is and write it down, so that an interrupted fetch continues with the same commit."""
    if entry.gated and hub.token() is None:
        raise hub.gated(entry)
    revision, files = hub.list_files(entry)
    if entry.repository and entry.pinned and revision != entry.revision:
        raise UserError(
            f"{entry.origin} answers with commit {revision}, pinned is {entry.revision}. Nothing was taken."
        )
    if not files:
        raise UserError(f"{entry.origin} has none of {', '.join(entry.files)}. Name others with files=PATTERN,PATTERN.")
    record = Record(
        name=entry.name,
        origin=entry.origin,
        revision=revision,
        license=entry.license,
        load=entry.load,
        trust=PINNED if entry.pinned else FIRST_USE,
        files={name: _with_pin(entry, name, listed) for name, listed in sorted(files.items())},
    )
    if entry.load and entry.load not in record.files:
        raise UserError(f"{entry.origin} has no file {entry.load}; it holds {', '.join(record.files)}.")
    say(f"{entry.origin}{f' at {revision}' if revision else ''}; licence: {entry.license}")
    if record.trust == FIRST_USE:
        say(
            f"Trusted on first use: {entry.unverified or 'no commit was named'}. What comes now is recorded in "
            f"{folder}, with its hashes, and later fetches into that folder must match."
        )
    record = replace(record, files={**record.files, **_found(folder, record)})
    transfer.require_space(
        entry.name, folder, {name: about for name, about in record.files.items() if not (folder / name).is_file()}
    )
    record.write(folder)
    return record


def _found(folder: Path, record: Record) -> dict[str, FileRecord]:
    """Listed files that lie in a folder without a record, measured. Another's file is neither taken nor replaced."""
    found = {}
    for name, expected in record.files.items():
        path = folder / name
        if not path.is_file():
            continue
        seen = transfer.measure(path)
        if not transfer.agrees(seen, expected):
            raise UserError(
                f"{path} was not fetched and is {transfer.describe(seen)}, not {transfer.describe(expected)}. Move it "
                "away, or name another folder with to=DIR."
            )
        found[name] = replace(seen, blob=expected.blob)
    return found


def _bring(entry: Entry, record: Record, folder: Path, say: Say) -> None:
    """Download what the folder lacks of a record, and note that it is whole."""
    missing = {name: about for name, about in record.files.items() if not (folder / name).is_file()}
    transfer.require_space(entry.name, folder, missing)
    total = size(sum(about.bytes for about in missing.values()))
    say(f"Fetching {len(missing)} of {len(record.files)} files, {total}: {folder}")
    done: dict[str, FileRecord] = {}
    written = time.monotonic()
    for name, expected in missing.items():
        say(f"  {name}  {size(expected.bytes)}")
        location = hub.locate(entry, name, record.revision, expected)
        with hub.translated(entry, location.url):
            transfer.download(location, folder / name, expected)
        done[name] = transfer.settle(folder / name, expected)
        if time.monotonic() - written > _WRITE_EVERY:  # a dataset may have thousands of small files
            replace(record, files={**record.files, **done}).write(folder)
            written = time.monotonic()
    record = replace(record, files={**record.files, **done})
    replace(record, complete=True).write(folder)
    say(f"'{entry.name}' is here: {len(record.files)} files, {size(record.bytes)}, all hashes right.")


def _with_pin(entry: Entry, name: str, listed: FileRecord) -> FileRecord:
    """What the server lists of a file together with what the catalogue pins. Raises UserError where they differ."""
    known = entry.known.get(name)
    if known is None:
        return listed
    same_size = known.bytes is None or known.bytes == listed.bytes
    if not same_size or (listed.sha256 and known.sha256 and not listed.sha256.startswith(known.sha256)):
        raise _not_the_pin(entry, name, listed, entry.origin)
    return replace(listed, sha256=listed.sha256 or known.sha256)


def _not_the_pin(entry: Entry, name: str, seen: FileRecord, where: str) -> UserError:
    known = entry.known[name]
    pin = transfer.describe(FileRecord(known.bytes or seen.bytes, known.sha256))
    return UserError(
        f"{name} of '{entry.name}' is {transfer.describe(seen)} in {where}; the catalogue pins {pin}. "
        "Nothing was taken."
    )


def _offline(entry: Entry, folder: Path, wrong: Mapping[str, str]) -> UserError:
    state = "; ".join(f"{name} is {what}" for name, what in wrong.items()) or f"not whole in {folder}"
    return UserError(
        f"'{entry.name}' cannot be fetched: HF_HUB_OFFLINE forbids the network, and here it is: {state}. Unset "
        f"HF_HUB_OFFLINE, or fetch it elsewhere ({entry.command} to=DIR) and copy DIR here as {folder}."
    )
