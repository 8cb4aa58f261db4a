"""The plugin's options: what can be asked for, what is refused, and what a run without them pays.

Nothing here needs a systemd manager.
"""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

HEAVY = ("asyncio", "jinja2", "click", "json", "tomllib", "pystemd", "understudy.")
LIGHT = ("understudy.pytest_plugin",)

SHOW_MODULES = """
import sys

def pytest_unconfigure():
    print("MODULES", *sorted(sys.modules))
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    for name in ("UNDERSTUDY_NETWORK", "PYTEST_ADDOPTS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile("def test_passes(): pass")
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *arguments)


def modules(suite: pytest.Pytester, *arguments: str) -> set[str]:
    suite.makeconftest(SHOW_MODULES)
    lines = run(suite, *arguments).outlines
    (found,) = [line for line in lines if line.startswith("MODULES")]
    return set(found.split()[1:])


def test_a_run_that_asks_for_nothing_imports_nothing_more(pytester: pytest.Pytester) -> None:
    with_it = modules(pytester, "--collect-only")
    without = modules(pytester, "--collect-only", "-p", "no:understudy")
    assert with_it - without <= {"understudy", *LIGHT}
    assert not {name for name in with_it if name.startswith("understudy.")} - {*LIGHT}


def test_tests_without_a_fixture_of_ours_import_nothing_more(suite: pytest.Pytester) -> None:
    found = modules(suite)
    assert {name for name in found if name.startswith("understudy")} == {"understudy", *LIGHT}


REFUSED = {
    "--understudy-manager=sytem": (
        "--understudy-manager: 'sytem' is none of: auto, system, user; did you mean 'system'?"
    ),
    "--understudy-engine=file": (
        "--understudy-engine: 'file' is none of: files, systemd-run; did you mean 'files'?"
    ),
    "--understudy-keep=fail": (
        "--understudy-keep: 'fail' is none of: never, failed, always; did you mean 'failed'?"
    ),
    "--understudy-stop=wiat": (
        "--understudy-stop: 'wiat' is none of: soon, wait; did you mean 'wait'?"
    ),
    "--understudy-timeout=soon": "--understudy-timeout: 'soon' is no number of seconds",
    "--understudy-timeout=0": "--understudy-timeout: '0' is no number of seconds",
    "--understudy-ports=20000": "Cannot read the port range '20000' (--understudy-ports)",
    "--understudy-ports=80-90": "Cannot use the port range 80-90 (--understudy-ports): *",
    "--understudy-limits=memroy=1M": (
        "--understudy-limits: 'memroy' is none of: memory, tasks, cpu; did you mean 'memory'?"
    ),
    "--understudy-limits=memory=1M,cpu=2": ("--understudy-limits: 'cpu=2' is not like cpu=50%"),
    "--understudy-limits=memory=1M\nUser=root": "--understudy-limits: 'memory=1M",
    "--understudy-reuse=a b": "--understudy-reuse: 'a b' is no name: *",
    "--understudy-units=nowhere": "--understudy-units: '*/nowhere' is not a folder",
    "--understudy-logs=test_what_is_not_meant_is_refused.py": (
        "--understudy-logs: '*' is there, and no folder"
    ),
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_is_not_meant_is_refused(pytester: pytest.Pytester, option: str) -> None:
    pytester.makepyfile("def test_passes(): pass")
    result = run(pytester, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {REFUSED[option]}"])
    result.stdout.no_fnmatch_line("*passed*")


def test_the_settings_file_is_named_where_it_is_wrong(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nunderstudy_keep = allways")
    result = run(suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: understudy_keep: 'allways' is none of: *'always'?"])


def test_an_unknown_setting_names_the_one_that_was_meant(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nunderstudy_limit = memory=1M")
    result = run(suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: understudy_limit: no such setting; did you mean 'understudy_limits'? there are: *"]
    )


def test_the_command_line_comes_first(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nunderstudy_keep = failed\nunderstudy_require = yes")
    suite.makeconftest(
        "def pytest_configure(config):\n"
        "    from understudy.plugin.settings import read\n"
        "    print('SETTINGS', read(config).keep, read(config).require)\n"
    )
    run(suite).stdout.fnmatch_lines(["SETTINGS failed True"])
    run(suite, "--understudy-keep=always").stdout.fnmatch_lines(["SETTINGS always True"])


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_it_imports_and_skips(suite: pytest.Pytester, platform: str) -> None:
    suite.makepyfile(
        "def test_own(understudy): pass\ndef test_of_all(understudy_session): pass\n"
        "def test_without(): pass"
    )
    suite.makeconftest(
        f"import sys\nsys.platform = {platform!r}\n"
        "def pytest_unconfigure():\n"
        "    found = [name for name in sys.modules if name.startswith('understudy.')]\n"
        "    print('MODULES', *sorted(found))\n"
    )
    result = run(suite, "-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            f"SKIPPED *: understudy starts systemd services, which {platform} has not",
            "MODULES understudy.pytest_plugin",
        ]
    )
    limits = "--understudy-limits=memory=1M"
    run(suite, limits, "--understudy-ports=1-2").assert_outcomes(passed=1, skipped=2)


def test_without_a_manager_a_test_is_an_error_in_a_few_lines(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        "import pytest\n"
        "import understudy.manager\n"
        "from understudy.errors import NoManagerError\n"
        "def refuse(kind, **_):\n"
        "    raise NoManagerError('Cannot reach the manager: it does not run', hint='boot it')\n"
        "understudy.manager.find_runtime_dir = refuse\n"
        "@pytest.fixture\n"
        "def one(understudy):\n"
        "    return understudy.spawn('mediamtx')\n"
    )
    suite.makepyfile("def test_it(one): pass")
    result = run(suite)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "conftest.py:9: in one",
            "E   understudy.errors.NoManagerError: Cannot reach the manager: it does not run",
            "E     hint: boot it",
        ]
    )
    result.stdout.no_fnmatch_line("*toolkit/understudy*")


@pytest.mark.parametrize("style", ["native", "line", "no"])
def test_whoever_asks_for_another_style_of_traceback_has_it(
    suite: pytest.Pytester, style: str
) -> None:
    suite.makepyfile("def test_it(understudy):\n    understudy.spawn(exec=['/no/such/thing'])")
    suite.makeconftest(
        "import understudy.manager\n"
        "from understudy.errors import NoManagerError\n"
        "def refuse(kind, **_):\n    raise NoManagerError('no manager')\n"
        "understudy.manager.find_runtime_dir = refuse\n"
    )
    result = run(suite, f"--tb={style}")
    result.assert_outcomes(failed=1)
    assert ("Traceback (most recent call last)" in result.stdout.str()) == (style == "native")


def test_without_a_manager_production_is_a_skip_and_no_problem(suite: pytest.Pytester) -> None:
    suite.makepyfile("def test_it(understudy):\n    understudy.production('mediamtx')")
    suite.makeconftest(
        "import understudy.manager\n"
        "from understudy.errors import NoManagerError\n"
        "def refuse(kind, **_):\n    raise NoManagerError('no manager')\n"
        "understudy.manager.find_runtime_dir = refuse\n"
    )
    result = run(suite, "-rs")
    result.assert_outcomes(skipped=1)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["SKIPPED * no manager"])
    result.stdout.no_fnmatch_line("understudy: *")


def test_a_bed_is_roots(suite: pytest.Pytester) -> None:
    suite.makeconftest("import os\nos.geteuid = lambda: 1000\n")
    result = run(suite, "--understudy-bed")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --understudy-bed: only root can boot a bed: sudo *"])


def test_the_fixtures_are_listed_with_what_they_give(suite: pytest.Pytester) -> None:
    result = run(suite, "--fixtures")
    result.stdout.fnmatch_lines(
        [
            "understudy -- *",
            "    Services for this test: *",
            "understudy_session *session scope* -- *",
        ]
    )
    help_ = run(suite, "--help").stdout
    help_.fnmatch_lines(["*--understudy-limits=LIMITS*", "*memory=512M,tasks=100,cpu=50%*"])
