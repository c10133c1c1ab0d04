"""The site file: what one installation of the service is to do, and with what.

In: a TOML file (`load_settings`). Out: frozen `Settings`. Unknown keys are refused, with the nearest known one. Nothing
here looks whether folders or programs exist; ``orchestrator site check`` does.
"""

from __future__ import annotations

from orchestrator.settings.doors import SpoolSettings, StompSettings, TlsSettings, parse_address
from orchestrator.settings.facility import FacilitySettings
from orchestrator.settings.ispyb import IspybSettings
from orchestrator.settings.loading import load_settings
from orchestrator.settings.model import (
    Condition,
    Defaults,
    GatewaySettings,
    Match,
    Recipe,
    ResourceRequest,
    Settings,
)  # fmt: skip
from orchestrator.settings.rest import RestSettings
from orchestrator.settings.retries import retries_of

__all__ = [
    "Condition", "Defaults", "FacilitySettings", "GatewaySettings", "IspybSettings", "Match", "Recipe",
    "ResourceRequest", "RestSettings", "Settings", "SpoolSettings", "StompSettings", "TlsSettings", "load_settings",
    "parse_address", "retries_of",
]  # fmt: skip
