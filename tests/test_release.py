"""What a release holds: one version everywhere, workflows that run what .ci/run runs, forms that can be read."""

import re

import pytest
import yaml
from conftest import ROOT

from amp import __version__

GITHUB = ROOT / ".github"


def _commands(workflow: str) -> list[str]:
    jobs = yaml.safe_load((GITHUB / "workflows" / workflow).read_text())["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_workflows_run_the_commands_of_ci_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    checks = [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]
    assert _commands("ci.yml") == checks
    assert _commands("release.yml") == [*checks, "make build"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {command.removeprefix("make ") for command in _commands("release.yml")} <= {*targets}


def test_the_version_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    newest = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest in ("Unreleased", __version__)


@pytest.mark.parametrize("form", sorted((GITHUB / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem)
def test_issue_forms_have_what_github_asks_for(form: object) -> None:
    content = yaml.safe_load(form.read_text())  # type: ignore[attr-defined]
    assert {"name", "description", "body"} <= {*content}
    assert all(field["attributes"]["label"] for field in content["body"])
