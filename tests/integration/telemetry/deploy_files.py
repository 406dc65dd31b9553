"""The metrics that the files in `deploy/` use."""

import json
from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from tests.support.service import ROOT


def rules() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield each PromQL expression, after the name of its alert or panel."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    dashboard = json.loads((ROOT / "deploy/grafana/anker.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


def used_metrics() -> Iterator[tuple[str, str, set[str]]]:
    """Yield the metrics that each alert or panel uses, with the labels that it selects or groups by."""
    for name, text in expressions():
        yield from ((name, metric, labels) for metric, labels in _metrics(promql_parser.parse(text), frozenset()))


def _metrics(expression: Any, grouping: frozenset[str]) -> Iterator[tuple[str, set[str]]]:
    match expression:
        case promql_parser.VectorSelector():
            yield expression.name, {each.name for each in expression.matchers.matchers} | grouping
        case promql_parser.MatrixSelector():
            yield from _metrics(expression.vector_selector, grouping)
        case promql_parser.AggregateExpr():
            labels = frozenset(expression.modifier.labels if expression.modifier else ())
            yield from _metrics(expression.expr, labels)
        case promql_parser.Call():
            for argument in expression.args:
                yield from _metrics(argument, grouping)
        case promql_parser.BinaryExpr():
            yield from _metrics(expression.lhs, grouping)
            yield from _metrics(expression.rhs, grouping)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _metrics(expression.expr, grouping)
        case promql_parser.NumberLiteral():
            pass
        case _:
            raise AssertionError(f"{expression} is not checked")
