"""The saved view of an experiment in MLflow: what it shows, and whose it is."""

from __future__ import annotations

import json

from flows.tracking.view import TAG, View, address, outdated, state_in, tag_of

VIEW = View.of({"general": "replay", "notes": "domain"}, ["sciq", "own"])


def test_columns_and_charts_are_of_the_sources_and_benchmarks() -> None:
    state = VIEW.state()
    assert "metrics.`perplexity/notes`" in state["selectedColumns"]
    assert "metrics.`eval/own/acc_mutual_info`" in state["selectedColumns"]
    drawn = [metric for chart in state["compareRunCharts"] for metric in chart["selectedMetricKeys"]]
    assert {"train/loss", "decay/loss", "train/heldout/notes", "perplexity/general", "mean/domain"} <= {
        *drawn
    }
    assert len(drawn) == len({*drawn})
    sections = {section["uuid"]: section["display"] for section in state["compareRunSections"]}
    assert {sections[chart["metricSectionId"]] for chart in state["compareRunCharts"]} == {True}
    assert sections["eval/own"] is False, "what MLflow adds by itself is closed"
    assert VIEW.sources == ("notes", "general"), "the domain's first"
    assert View.read(json.loads(json.dumps(VIEW.to_json()))) == VIEW


def test_the_largest_view_fits_into_a_tag() -> None:
    long = {f"a source with a long name, number {number}": "domain" for number in range(60)}
    tag = tag_of(View.of(long, (f"benchmark-with-a-long-name-{number}" for number in range(60))), 1)
    assert len(tag) < 20_000
    assert len(state_in(tag)["compareRunCharts"]) == 5 + 2 + 24 + 24


def test_it_is_written_where_it_is_missing_or_of_other_sources_and_never_over_a_persons() -> None:
    other = View.of({"essays": "domain"}, [])
    assert outdated(None, VIEW) and outdated(tag_of(other, 1), VIEW)
    assert not outdated(tag_of(VIEW, 1), VIEW)
    saved = json.dumps(json.loads(tag_of(other, 1)) | {"updatedAt": 2})  # as MLflow's page does it
    assert not outdated(saved, VIEW)
    assert not outdated("of another release", VIEW) and not outdated('{"state": "deflate;?"}', VIEW)


def test_the_address_opens_it_on_its_page_and_from_elsewhere() -> None:
    assert address("3").startswith("#/experiments/3/runs?")
    assert address("3", "http://box:5000") == f"http://box:5000/{address('3')}"
    assert TAG.rpartition(".")[2] in address("3")
