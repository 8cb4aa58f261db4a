"""No tests: benchmarks, which are run by themselves, and play production where they need it."""

# understudy: ignore-folder[A102, A104, A201, A202, A302] in a bed: production is theirs
