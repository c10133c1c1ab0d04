"""Who runs the site and under which terms its data stand, for exports to catalogues and archives."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class FacilitySettings(BaseModel):
    """The facility. What is left out is said to be not known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """Its home page, or better its ROR address."""
    contact: Text | None = None
    """Whom to ask about processed data."""
    contact_email: Annotated[str, Field(pattern=r"^[^@\s;]+@[^@\s;]+\.[^@\s;]+$")] | None = None
    license: Text | None = None
    """Of the processed data: an address, or a sentence."""
