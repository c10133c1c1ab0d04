"""The digest of what is in an HDF5 file: the same for equal content, however and whenever it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.contents.objects import Attribute, Item, blocks_of, items, opened
from orchestrator.contents.values import canonical, json_bytes, type_name


@dataclass(frozen=True, kw_only=True)
class ContentDigest:
    """The content of a file in a few bytes."""

    sha256: str
    objects: Mapping[str, str]
    """SHA-256 of each object, its attributes included, by path: where two files differ, these do."""


def content_digest(path: Path) -> ContentDigest:
    """Return the digest of an HDF5 file's content.

    Raises
    ------
    InvalidInput
        When it can't be read, or holds values of a type that can't be compared.
    """
    with opened(path) as file:
        objects = {name: _of_item(item) for name, item in sorted(items(file).items())}
    whole = hashlib.sha256()
    for name, digest in objects.items():
        whole.update(json_bytes([name, digest]) + b"\n")
    return ContentDigest(sha256=whole.hexdigest(), objects=objects)


def _of_item(item: Item) -> str:
    attributes = {name: described(attribute) for name, attribute in item.attributes.items()}
    digest = hashlib.sha256(json_bytes([item.header, attributes]) + b"\n")
    if item.dataset is not None:
        for _selection, block in blocks_of(item.dataset):
            digest.update(canonical(block, item.dataset.dtype))
    return digest.hexdigest()


def described(attribute: Attribute) -> list[Any]:
    """Return an attribute's type, shape and value for JSON, the value as a digest."""
    content = canonical(attribute.value, attribute.dtype)
    return [type_name(attribute.dtype), attribute.shape, hashlib.sha256(content).hexdigest()]
