"""What is wrong with what an author's code was given."""

from __future__ import annotations

from agent.errors import Invalid


class SettingsError(Invalid):
    """A setting is missing or makes no sense; the text names its key."""

    code = "SETTING_INVALID"
