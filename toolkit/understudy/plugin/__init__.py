"""What the plugin for pytest does once it is used: `understudy.pytest_plugin` imports it then.

In each process that runs tests there is at most one `worker.Worker`, with one run, begun at the
first use of a fixture. What it does is told in the reports of the tests, which travel: from a
worker of xdist to the controller, from a forked child to its parent. Where the session's result is
made, `ledger.Ledger` adds them up.
"""
