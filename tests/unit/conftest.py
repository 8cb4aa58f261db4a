"""Settings of the tests that need nothing but the package."""

from __future__ import annotations

from hypothesis import settings

# Without a folder of examples: the checkout may be somebody else's.
settings.register_profile("understudy", database=None)
settings.load_profile("understudy")
