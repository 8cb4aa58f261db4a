"""Production of this host: put there by its administrator, and taken away again.

The only part of the toolkit that changes units which are not called ``understudy-…``, by way of
`understudy.deploy.units`. Everything else asks `understudy.manager.ours`, which refuses them.
"""

from __future__ import annotations

from understudy.deploy.deploying import deploy, wanted
from understudy.deploy.outcome import Outcome, check_root
from understudy.deploy.plan import Action
from understudy.deploy.testers import TesterOutcome, deploy_testers, withdraw_testers
from understudy.deploy.withdrawing import withdraw

__all__ = [
    "Action",
    "Outcome",
    "TesterOutcome",
    "check_root",
    "deploy",
    "deploy_testers",
    "wanted",
    "withdraw",
    "withdraw_testers",
]
