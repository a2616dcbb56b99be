"""The report: one file, complete, and a clear sentence where the record is bad."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from alp_megatron.diagnostics.figures import PLOTS, scores
from alp_megatron.diagnostics.keys import required_keys
from alp_megatron.diagnostics.report import write_report
from alp_megatron.errors import UserError


def write_run(path, steps=12, layers=3, **extra):
    with open(path / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            record = {
                key: 0.5 + 0.3 * math.sin(step + i) for i, key in enumerate(required_keys(layers))
            }
            record |= {"step": step, "eval/step": step // 5 * 5, "eval/score": 0.3 + step // 5 / 10}
            file.write(json.dumps(record | extra) + "\n")


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("layers", [3, 20])
def test_report_is_one_file_with_all_figures(tmp_path, layers):
    write_run(tmp_path, layers=layers)
    (tmp_path / "environment.json").write_text('{"versions": {"torch": "9.9"}, "commit": "<b>"}')
    (tmp_path / "config.yaml").write_text("model:\n  path: a&b\n")
    page = write_report(tmp_path).read_text()

    assert "http" not in page and "@import" not in page and "url(" not in page
    tags = Tags(page).seen
    sources = [attrs["src"] for tag, attrs in tags if tag == "img"]
    assert len(sources) == len(PLOTS) and all(s.startswith("data:image/png;") for s in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags}
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    text = re.sub("<[^>]*>", " ", page)
    for shown in ("0.300 (step 0)", "0.500 (step 10)", "+0.200", "9.9", "&lt;b&gt;", "a&amp;b"):
        assert shown in text
    for name in PLOTS:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_report_notes_what_is_unhealthy(tmp_path):
    write_run(tmp_path, **{"mismatch/k3": 0.7})
    page = write_report(tmp_path).read_text()
    assert "Step 12: mismatch/k3 is 0.7, healthy is at most 0.1" in page
    assert "(12 of 12 steps.)" in page


def test_report_says_what_the_mismatch_is_to(tmp_path):
    write_run(tmp_path)
    rollout = (
        "rollout:\n  dtype: bfloat16\n  quantization: int8\n  quantization_ignore: ['*.o_proj']\n"
    )
    (tmp_path / "config.yaml").write_text(rollout)
    page = write_report(tmp_path).read_text()
    assert "bfloat16, linear layers quantised to int8, except *.o_proj" in page
    (tmp_path / "config.yaml").write_text("rollout:\n  dtype: float32\n")
    assert "float32, not quantised" in write_report(tmp_path).read_text()


def test_a_short_run_with_few_metrics_still_reports(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    assert "Base score" not in write_report(tmp_path).read_text()


def test_scores_are_told_apart_by_the_step_of_the_evaluation():
    records = [{"step": s, "eval/score": 0.1 * (s // 3), "eval/step": s // 3 * 3} for s in range(7)]
    steps, values = scores(records)
    assert steps.tolist() == [0, 3, 6] and values.tolist() == pytest.approx([0, 0.1, 0.2])


def test_bad_records_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="metrics.jsonl does not exist"):
        write_report(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("")
    with pytest.raises(UserError, match="no finished step yet"):
        write_report(tmp_path)
    metrics.write_text('{"step": 1}\nnot json\n')
    with pytest.raises(UserError, match="line 2"):
        write_report(tmp_path)
    metrics.write_text('{"step": 1}\n')
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(UserError, match="environment.json is not JSON"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists() and not (tmp_path / "figures").exists()
