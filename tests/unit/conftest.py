"""Settings of the tests that need nothing but the package."""

from __future__ import annotations

from hypothesis import settings

# Without a folder of examples: the checkout may be somebody else's. Without a deadline for each:
# the machine may be busy.
settings.register_profile("understudy", database=None, deadline=None)
settings.load_profile("understudy")
