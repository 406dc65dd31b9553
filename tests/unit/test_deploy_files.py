"""The files in `deploy/` that Prometheus and Grafana read."""

import json
import os
import shutil
import subprocess

import promql_parser
import pytest

from tests.integration.telemetry.deploy_files import expressions, rules
from tests.support.service import ROOT


@pytest.mark.parametrize(("name", "expression"), list(expressions()), ids=lambda value: value[:40])
def test_expression_is_valid_promql(name: str, expression: str) -> None:
    assert promql_parser.parse(expression)


def test_every_alert_has_a_severity_a_summary_and_a_section_in_the_runbook() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"


def test_rules_pass_their_tests_and_the_configuration_is_valid() -> None:
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed")
    folder = ROOT / "deploy/prometheus"
    for command in (["check", "config", "--syntax-only", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([program, *command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_has_distinct_panels_with_a_data_source_to_choose() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/anker.json").read_text())
    assert [each["type"] for each in dashboard["templating"]["list"]] == ["datasource"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
