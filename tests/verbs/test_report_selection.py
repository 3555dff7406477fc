"""The report's chart of what rules keep of pseudo-labels: bars as long as the shares, means over runs, nothing where there is one rule."""

import pathlib
import re

import numpy as np

from segjax.verbs import report_labels, report_selection
from segjax.verbs.report_read import Run, Score, Stage

CLASSES = ("road", "sky <b>")


def stage(name, kept, precision, *, rule="consensus", confusion=((6, 2), (1, 1)), pixels=0.5):
    """A stage that made labels; confusion: of the kept pixels. precision None: no truth."""
    labels = {"classes": list(CLASSES), "palette": [[1, 2, 3], [4, 5, 6]], "images": 2, "rule": rule, "kept": kept, "kept_pixels": pixels}
    labels |= {"predicted": [0.75, 0.25]} | ({"precision": {"all": [0.5, 0.25], "kept": precision}} if precision else {})
    make = lambda key, table: Score(
        key, CLASSES, ((1, 2, 3), (4, 5, 6)), np.zeros(2), 0.0, "mIoU", np.array(table), np.zeros(2, int), None, 2, {}
    )
    scores = [make("pseudo-labels-train", confusion), make("pseudo-labels-all-train", ((5, 5), (5, 5)))]
    return Stage(name, pathlib.Path("nowhere"), {}, {}, {}, {score.name: score for score in scores}, labels, True)


def bars(page):
    """[(hover text, width), ...] in the order of the page."""
    return [(text, float(width)) for width, text in re.findall(r'<rect [^>]*width="([\d.]+)"[^>]*><title>([^<]*)</title>', page)]


def test_bars_are_the_shares_and_means_over_the_runs():
    found = {
        "consensus": [stage("consensus", [0.8, 0.5], [0.9, None]), stage("consensus", [0.6, 0.7], [0.7, 0.5], pixels=0.7)],
        "threshold": [stage("threshold", [0.2, None], [1.0, None], rule="code", confusion=((9, 1), (0, 0)))],
    }
    page = report_selection.chart(found)
    whole = report_selection.PANEL
    assert bars(page) == [
        ("all, consensus: 60.0 % kept", 0.6 * whole),
        ("all, threshold: 50.0 % kept", 0.5 * whole),
        ("road, consensus: 70.0 % kept", 0.7 * whole),
        ("road, threshold: 20.0 % kept", 0.2 * whole),
        ("sky &lt;b&gt;, consensus: 60.0 % kept", 0.6 * whole),
        ("all, consensus: 70.0 % right, 50.0 % before the rule", 0.7 * whole),
        ("all, threshold: 90.0 % right, 50.0 % before the rule", 0.9 * whole),
        ("road, consensus: 80.0 % right, 50.0 % before the rule", 0.8 * whole),
        ("road, threshold: 100.0 % right, 50.0 % before the rule", whole),
        ("sky &lt;b&gt;, consensus: 50.0 % right, 25.0 % before the rule", 0.5 * whole),
    ]
    assert page.count('class="mark"') == 5 and page.count("<svg") == page.count("</svg>") == 1


def test_it_stands_below_the_table_of_its_classes_and_only_where_rules_are_compared():
    both = (stage("consensus", [0.8, 0.5], [0.9, 0.4]), stage("threshold", [0.2, 0.1], [1.0, 0.5], rule="code"))
    both[1].labels.update(share=1.0, cap=0.9)
    page = report_labels.labels([Run("run", pathlib.Path("run"), both)])
    assert page.index("</table>") < page.index("Which pixels a rule keeps") and "code 1, cap 0.9" in page
    all_kept, no_truth = stage("pseudo", [1.0, 1.0], [0.5, 0.5], rule="none"), stage("blind", [0.2, 0.1], None)
    assert report_selection.chart({"consensus": [both[0]], "pseudo": [all_kept], "blind": [no_truth]}) == ""
