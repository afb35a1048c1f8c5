"""Makefile, workflow and hooks name the checks of scripts/check.sh, none is left out, and a wrong name is refused."""

import re
import subprocess

import yaml

from tests.paths import ROOT

SCRIPT = (ROOT / "scripts" / "check.sh").read_text("utf-8")
ALL = re.search(r"^all=\((.*)\)$", SCRIPT, re.MULTILINE)
assert ALL
CHECKS = set(ALL[1].split())


def test_the_makefile_has_a_target_for_every_check() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    by_script = re.search(r"^([a-z ]+):\n\t@bash scripts/check.sh \$@$", makefile, re.MULTILINE)
    assert by_script and set(by_script[1].split()) == CHECKS | {"fix"}
    listed = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony and set(phony[1].split()) == listed


def test_the_workflow_runs_every_check_and_nothing_else() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text("utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert all(command.startswith(("make ", "bash scripts/setup.sh ")) for command in commands)
    run = {word for command in commands if command.startswith("make ") for word in command.split()[1:]}
    assert run == CHECKS | {"setup"}


def test_the_hooks_run_checks_of_the_script() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    named = {hook["entry"].split()[-1] for hook in hooks if "check.sh" in hook["entry"]}
    assert named and named <= CHECKS


def test_an_unknown_check_is_refused_by_name() -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "check.sh"), "lnit"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "'lnit' is no check" in done.stderr
