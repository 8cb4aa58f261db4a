"""Examples are run by the tests of the project, not as such."""

collect_ignore = ["legacy", "modern"]
