from config.resolve import Resolved, SettingsError, resolve
from config.settings import Settings

__all__ = ["Resolved", "Settings", "SettingsError", "resolve"]
