"""Where exports go: files in one folder, which appear when they are whole and never replace others unasked."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from orchestrator.errors import InvalidInput
from orchestrator.exporting.account import NOT_KNOWN, Account, readable
from orchestrator.exporting.methods import methods_text
from orchestrator.exporting.prov_json import prov_document
from orchestrator.exporting.ro_crate import METADATA, write_crate
from orchestrator.exporting.scicat import NO_EMAIL, dataset_document, files_document
from orchestrator.provenance import record_text
from orchestrator.records import Json
from orchestrator.runs import write_atomically

CRATE = "ro-crate"


class Format(StrEnum):
    """What a run can be exported as."""

    RO_CRATE = "ro-crate"
    SCICAT = "scicat"
    PROV = "prov"
    METHODS = "methods"
    RECORD = "record"


_ONE_TEXT = (Format.METHODS, Format.PROV, Format.RECORD)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    run_id: str
    written: tuple[Path, ...]
    notes: tuple[str, ...]
    """What the exports couldn't say, and where to write it down."""


def export(
    account: Account,
    formats: Sequence[Format],
    folder: Path,
    *,
    overwrite: bool = False,
    results_by_reference: bool = False,
) -> Exported:
    """Write a run in each of `formats` into `folder`, which is made where it isn't there.

    Parameters
    ----------
    overwrite
        Replace what an earlier export wrote.
    results_by_reference
        Leave results out of the crate, and name them by their addresses.

    Raises
    ------
    InvalidInput
        When something is there already, can't be written, or the run's files aren't what was recorded. Nothing of the
        export that failed is left behind.
    """
    if folder.is_relative_to(account.directory.path):
        raise InvalidInput(
            f"{readable(folder)} lies in the run's own directory", remedy="give a folder elsewhere with -o"
        )
    texts = {path: text for form in dict.fromkeys(formats) for path, text in _texts(account, form, folder)}
    crate = folder / CRATE if Format.RO_CRATE in formats else None
    targets = [*texts, *([crate] if crate else [])]
    _check_free(targets, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            write_atomically(path, text)
        if crate is not None:
            _replace_folder(crate, partial(write_crate, account, results_by_reference=results_by_reference))
    except OSError as error:
        raise InvalidInput(
            f"{readable(error.filename or folder)}: {error.strerror}",
            remedy="check its permissions and the disk's space, or give another folder with -o",
        ) from error
    return Exported(run_id=account.run_id, written=tuple(targets), notes=tuple(_notes(account, formats)))


def exported_text(account: Account, formats: Sequence[Format]) -> str:
    """Return a run in one of the forms that are one text: `METHODS`, `PROV`, `RECORD`.

    Raises
    ------
    InvalidInput
        When it is to be several, or a form that is several files.
    """
    if len(formats) != 1 or formats[0] not in _ONE_TEXT:
        raise InvalidInput(
            f"only one of {', '.join(_ONE_TEXT)} can be printed", remedy="give a folder to write into with -o"
        )
    ((_, text),) = _texts(account, formats[0], Path())
    return text


def _texts(account: Account, form: Format, folder: Path) -> Iterator[tuple[Path, str]]:
    if form is Format.METHODS:
        yield folder / "methods.md", methods_text(account)
    elif form is Format.PROV:
        yield folder / "prov.json", _json(prov_document(account))
    elif form is Format.RECORD:
        yield folder / "provenance.json", record_text(account.detail)
    elif form is Format.SCICAT:
        yield folder / "scicat-dataset.json", _json(dataset_document(account))
        if (files := files_document(account)) is not None:
            yield folder / "scicat-files.json", _json(files)


def _json(document: Json | Mapping[str, Json]) -> str:
    return json.dumps(document, indent=2) + "\n"


def _check_free(targets: Sequence[Path], *, overwrite: bool) -> None:
    for path in targets:
        if path.name == CRATE and path.exists() and not (path / METADATA).is_file():
            raise InvalidInput(f"{readable(path)} is there and is no crate", remedy="give another folder with -o")
        if path.exists() and not overwrite:
            raise InvalidInput(
                f"{readable(path)} is there already", remedy="give another folder with -o, or --overwrite to replace it"
            )


def _replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Have a folder appear when it is whole, in place of an older one."""
    making = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    making.mkdir()
    try:
        write(making)
        if target.exists():
            shutil.rmtree(target)
        making.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _notes(account: Account, formats: Sequence[Format]) -> Iterator[str]:
    facility = account.facility
    if Format.SCICAT in formats and (facility is None or facility.contact_email is None):
        yield f"scicat: contactEmail is {NO_EMAIL}; the site file can say it: [facility] contact_email"
    if Format.SCICAT in formats and not account.results:
        yield "scicat: the run made no files, so there is no list of them"
    if Format.RO_CRATE in formats and (facility is None or facility.license is None):
        yield f"ro-crate: the license of the data is {NOT_KNOWN}; the site file can say it: [facility] license"
