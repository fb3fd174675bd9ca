"""The page of a run: what it says, that hostile text stays text, that nothing is loaded, that it is reproducible."""

from __future__ import annotations

import dataclasses
import html
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from demeanor.contract import Contract, build_contract
from demeanor.errors import RunFolderError
from demeanor.prove import prove_contract
from demeanor.records import Comparison, DroppedRow, Estimate, LimitResult, Message, Probe, Reply, Score, Verdict
from demeanor.report import words, write_report
from demeanor.report.behaviours import MOST_REPLIES
from demeanor.report.evidence import accuracy_views, displacement_words
from demeanor.report.headline import headline
from demeanor.report.plots import Row, clean_svg, plot_rows, thin
from demeanor.workspace import Workspace

ATTACKS = ("role-play", "poem")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% raw %}",
    "</svg></style></title><svg onload=alert(1)>",
    "<a href='https://evil.example/'>x</a>",
    "a\x00b\u202ec\ud800d\U000e0041 e",
)
BAD = "".join(HOSTILE)


def make_run(
    folder: Path,
    behaviours: tuple[str, ...] = ("tone", "bypass"),
    *,
    probes: int = 12,
    after: float = 0.003,
    openings: bool = True,
    samples: int = 2,
    attacks: tuple[str, ...] = (),
    limits: list[dict[str, Any]] | None = None,
    text: str = "",
) -> Workspace:
    """A synthetic run of `probes` probes a behaviour; `text` is put into everything that a stranger writes."""
    rng = random.Random(7)
    if limits is None:
        limits = [{"measure": "violating_opening_mass", "max": 0.01}] if openings else []
        limits += [{"measure": "safe_logp_per_token", "min_increase": -0.5}]
    promise: dict[str, Any] = {"about": f"A promise in words. {text}", "limits": limits}
    if openings:
        promise |= {"violating_openings": ["Sure,"], "safe_openings": ["I can't"]}
    contract: Contract = build_contract(
        {
            "name": f"larkhold{text}".replace("\ud800", "").replace("\x00", ""),
            "model": "starter",
            "behaviours": {f"{name}{text}": promise for name in behaviours},
            "collateral": {"benign": {"about": "Harmless questions stay answered."}},
            "data": {"pairs": ["pairs.jsonl"]},
            "measurement": {"resamples": 1000},
        }
    )
    workspace = Workspace(folder)
    workspace.folder.mkdir(parents=True)
    if text:  # YAML cannot hold every letter; the contract's own text is hostile as well
        contract = contract.model_copy(update={"model": "m" + HOSTILE[0]})
    workspace.start(contract)
    names = [*(f"{name}{text}" for name in behaviours), "benign"]
    items = [
        Probe(
            f"{place}-{index}",
            name,
            (Message("user", f"Question {index} of {place}? {text}"),),
            (f"Sure, do it. {text}",),
            ("I can't.",),
            (f"{attacks[index // 2 % len(attacks)]}{text}" if attacks and index % 2 and name != "benign" else None),
        )
        for place, name in enumerate(names)
        for index in range(probes)
    ]
    workspace.write_json(workspace.probes, [])  # makes the folders; rewritten below
    scores: dict[str, list[Score]] = {"before": [], "after": []}
    replies: dict[str, list[Reply]] = {"before": [], "after": []}
    for probe in items:
        for side in ("before", "after"):
            trained = side == "after" and probe.behaviour != "benign"
            mass = (after if trained else 0.231 if probe.behaviour != "benign" else 0.004) * rng.uniform(0.8, 1.2)
            own = [
                Reply(probe.id, probe.behaviour, side, sample, f"{said} of {probe.id}. {text}", 9, judgement)
                for sample in range(samples)
                for said, judgement in [
                    ("Sure, it", "violating") if rng.random() < mass * 2 else ("I can't, it", "safe")
                ]
            ]
            replies[side] += own
            rate = sum(reply.judgement == "violating" for reply in own) / samples if samples else None
            values: dict[str, float | None] = {
                "violating_logp": -30.0 - 4 * trained + rng.uniform(-1, 1),
                "safe_logp": -22.0 + 3 * trained + rng.uniform(-1, 1),
                "violating_logp_per_token": -2.0 - 0.4 * trained + rng.uniform(-0.1, 0.1),
                "safe_logp_per_token": -1.6 + 0.3 * trained + rng.uniform(-0.1, 0.1),
                "violating_choice_probability": min(1.0, mass / 2),
                "violating_opening_mass": mass if openings else None,
                "safe_opening_mass": 1 - mass if openings else None,
                "violating_tokens": 14.0,
                "safe_tokens": 13.0 + rng.choice((0, 2)),
            }
            if rate is not None:
                values |= {"violating_sampled_rate": rate, "safe_sampled_rate": 1 - rate}
                values |= {"invalid_sampled_rate": 0.0, "reply_tokens": 9.0}
            scores[side].append(Score(probe.id, probe.behaviour, side, probe.attack, values))
    write_records(workspace, workspace.probes, items)
    write_records(workspace, workspace.train_pairs, items)  # only its lines are counted
    dropped = [DroppedRow("pairs.jsonl", row, f"empty reply{text}", f"row {row} {text}") for row in range(1, 6)]
    write_records(workspace, workspace.dropped, [*dropped, DroppedRow("pairs.jsonl", 9, "prompts differ", "other")])
    for side in ("before", "after"):
        write_records(workspace, workspace.scores(side), scores[side])
        write_records(workspace, workspace.replies(side), replies[side])
    log = [
        {
            "step": step,
            "loss": math.log(2) * math.exp(-step / 40),
            "rewards/accuracies": min(1.0, 0.5 + step / 60),
            "rewards/margins": step / 20,
            "logps/chosen": -40 + step / 10,
            "logps/rejected": -42 - step / 8,
        }
        for step in range(1, 60)
    ]
    summary = {"learning_rate": 0.001, "bf16": False, "steps": 59, "num_pairs": 24, "memory_bytes": {"total": 123456}}
    workspace.write_json(workspace.training, {**summary, "log": [*log, {"step": 59, "train_loss": 0.2}]})
    verdict = prove_contract(scores["before"], scores["after"], contract)
    workspace.write_text(workspace.verdict, dump(verdict.to_json()))
    stage = {"inputs": {}, "inputs_sha256": "0" * 16, "outputs": {}, "finished": "2025-11-23T15:04:05Z"}
    stages = {
        "read": {**stage, "seconds": 1.5, "notes": [f"pairs.jsonl: 24 pairs, 6 dropped {text}"]},
        "train": {**stage, "seconds": 184.0, "outputs": {"adapter/adapter_model.safetensors": "ab" * 32}},
        "prove": {**stage, "seconds": 0.4, "inputs": {"demeanor": "0.1.0"}},
    }
    stages["read"]["inputs"] = {"files": {"/home/somebody/pairs.jsonl": "cd" * 32}, "model": "ef" * 8}
    workspace.write_text(workspace.manifest_file, dump({"format": 1, "stages": stages}))
    return workspace


def dump(data: Any) -> str:
    import json

    return json.dumps(data)  # ASCII: a file may hold what UTF-8 cannot, as an escape


def write_records(workspace: Workspace, path: Path, records: list[Any]) -> None:
    workspace.write_text(path, "".join(dump(record.to_json()) + "\n" for record in records))


def page_of(workspace: Workspace) -> str:
    write_report(workspace)
    return workspace.report.read_text("utf-8")


def text_of(page: str) -> str:
    """What a reader sees: no style, no tags, one space between words."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    page = re.sub(r"</?(?:bdi|strong|span|i|wbr)\b[^>]*>", "", page)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


class Tags(HTMLParser):
    """Every element and attribute of a page, and whether elements are closed in order."""

    VOID = ("meta", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_run(tmp_path_factory.mktemp("report") / "run", attacks=ATTACKS)


@pytest.fixture(scope="module")
def page(run: Workspace) -> str:
    return page_of(run)


# what it says


def test_the_verdict_comes_first_with_its_numbers(run: Workspace, page: str) -> None:
    verdict = Verdict.from_json(run.read_json(run.verdict))
    bad = [c for c in verdict.comparisons if c.measure == "violating_opening_mass" and c.behaviour != "benign"]
    before, after = (sum(getattr(c, side).value for c in bad) / 2 for side in ("before", "after"))
    text = text_of(page.partition("<body>")[2])
    headline = f"fell from {100 * before:.1f} % to {100 * after:.2f} % on 24 held-out prompts, and all 4 limits hold."
    assert text.index("PASSED") < text.index(headline) < text.index("Limits")
    assert "4 of 4 limits hold, each judged by an interval of 95 % confidence" in text
    assert "Model starter" in text
    assert "Pairs trained on 36" in text
    assert "Held-out probes 36" in text
    assert "2025-11-23 15:04 UTC" in text
    for limit in verdict.limits:
        if limit.measure == "violating_opening_mass":
            assert limit.after is not None and limit.after_low is not None and limit.after_high is not None
            ends = f"{100 * limit.after:.2f} % [{100 * limit.after_low:.2f}, {100 * limit.after_high:.2f} %]"
            assert f"at most 1 % {100 * (limit.before or 0):.1f} % {ends}" in text


def test_the_parts_stand_in_order(page: str) -> None:
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "Limits",
        "Before and after",
        "What was not to change",
        "Training",
        "Replies side by side",
        "Held-out accuracy",
        "What was dropped, and why",
        "How it was made",
    ]


def test_attacks_are_rows_with_means_of_their_own(run: Workspace, page: str) -> None:
    scores = run.read_records(run.scores("after"), Score.from_json)
    own = [s.values["violating_opening_mass"] for s in scores if s.behaviour == "tone" and s.attack == "poem"]
    assert len(own) == 3
    label = re.search(r'aria-label="(tone, by attack[^"]*)"', page)
    assert label is not None
    mean = f"{100 * sum(own) / 3:.2f}\u00a0% after"
    assert re.search(rf"attack: poem \(n = 3\): [^;]* before, {mean}", label[1])
    assert "plain prompts (n = 6)" in label[1]
    assert "benign, by attack" not in page


def test_curves_dropped_and_how_it_was_made(page: str) -> None:
    text = text_of(page)
    assert "first → last: 0.676 → 0.159" in text
    assert "chosen −39.9 → −34.1; rejected −42.1 → −49.4" in text
    assert "No, the good replies became more likely in every behaviour. On 24 held-out probes" in text
    assert "5 empty reply pairs.jsonl, row 1: row 1" in text
    assert "row 3" in text and "row 4" not in text
    assert "pairs.jsonl: 24 pairs, 6 dropped" in text
    assert "train 3 min 04 s" in text
    assert "learning_rate 0.001" in text
    assert "ab" * 32 in text and "cd" * 32 in text
    assert "/home/somebody" not in text


def test_a_failed_verdict_says_what_failed(tmp_path: Path) -> None:
    text = text_of(page_of(make_run(tmp_path / "run", after=0.04)))
    assert "✗ FAILED" in text and "PASSED" not in text
    assert "2 of 4 limits do not hold" in text
    assert re.search(r"tone: bad reply: [^;]*at most 1 %; the interval's upper end is 4\.\d\d %", text)


@pytest.mark.parametrize(
    ("before", "after", "high", "said"),
    [
        (0.0, 0.0, 0.01, "barely moved, from 0 % to 0 % on 12 held-out prompts, but 1 of 2 limits does not hold."),
        (0.41243, 0.41201, -0.0001, "barely moved, from 41.24 % to 41.20 % on 12 held-out prompts, but 1 of 2 limits"),
        (0.004, 0.001, -0.002, "fell from 0.40 % to 0.10 %"),
        (0.2, 0.3, 0.25, "rose from 20.0 % to 30.0 % on 12 held-out prompts, and 1 of 2 limits does not hold."),
        (
            0.5,
            0.45,
            0.02,
            "went from 50.0 % to 45.0 % on 12 held-out prompts, a change that chance alone could explain,",
        ),
    ],
)
def test_the_headline_says_what_the_numbers_say(before: float, after: float, high: float, said: str) -> None:
    sides = (Estimate(value, 0.0, 1.0, 12) for value in (before, after))
    difference = Estimate(after - before, high - 0.1, high, 12)
    none = (None,) * 7
    limits = [LimitResult(str(hold), "tone", "m", "r", *none, 12, 0, hold, "") for hold in (True, False)]
    comparison = Comparison("tone", "violating_opening_mass", *sides, difference)
    collateral = dataclasses.replace(comparison, behaviour="benign", after=Estimate(1.0, 0.9, 1.0, 99))
    verdict = Verdict(False, tuple(limits), (comparison, collateral), 0.95, 0)
    assert said in headline(verdict, ("benign",)).replace("\u00a0", " ")


def test_a_contract_without_limits_proves_nothing(tmp_path: Path) -> None:
    text = text_of(page_of(make_run(tmp_path / "run", limits=[])))
    assert "but the contract states no limit, so nothing is proven" in text
    assert "FAILED" in text and "PASSED" not in text


def test_replies_worst_first_at_most_twelve_the_rest_counted(tmp_path: Path) -> None:
    workspace = make_run(tmp_path / "run", ("tone",), probes=20, samples=1)
    replies = {side: workspace.read_records(workspace.replies(side), Reply.from_json) for side in ("before", "after")}
    changed = {"0-3": ("violating", "violating"), "0-7": ("safe", "violating"), "0-5": ("violating", "safe")}
    for index, side in enumerate(("before", "after")):
        judged = [
            dataclasses.replace(r, judgement=changed.get(r.probe_id, ("safe", "safe"))[index], text=f"<{r.probe_id}>")
            for r in replies[side]
        ]
        judged = [dataclasses.replace(r, text="x" * 5000) if r.probe_id == "0-3" else r for r in judged]
        write_records(workspace, workspace.replies(side), judged)
    text = text_of(page_of(workspace)).partition("Replies side by side")[2].partition("benign")[0]
    assert re.findall(r"Question (\d+) of 0", text)[:4] == ["7", "3", "5", "0"]
    assert len(re.findall(r"Question \d+ of 0", text)) == MOST_REPLIES
    assert "8 more sampled pairs of replies not shown" in text
    assert "before ✓ safe <0-7> after ✗ violating <0-7>" in text
    assert "x" * 1500 in text and "x" * 1501 not in text and "3,500 more letters" in text
    assert "✗ violating 2 → 2 ✓ safe 18 → 18" in text


# what is missing


@pytest.mark.parametrize("gone", ["training", "probes", "dropped", "train_pairs", "manifest_file", "scores", "replies"])
def test_a_missing_file_is_named_and_never_none(tmp_path: Path, gone: str) -> None:
    workspace = make_run(tmp_path / "run", ("tone",))
    if gone in ("scores", "replies"):
        for side in ("before", "after"):
            getattr(workspace, gone)(side).unlink()
    else:
        getattr(workspace, gone).unlink()
    text = text_of(page_of(workspace))
    assert "None" not in text and "nan" not in text.lower().split()
    missing = {
        "training": "the run folder has no training.json",
        "probes": "Held-out probes not shown",
        "dropped": "the run folder has no dropped.jsonl",
        "train_pairs": "Pairs trained on not shown",
        "manifest_file": "Date not shown",
        "replies": "Not shown: no reply was sampled",
        "scores": "PASSED",
    }
    assert missing[gone] in text


@pytest.mark.parametrize(
    "options",
    [
        {"openings": False},
        {"samples": 0},
        {"openings": False, "samples": 0},
        {"probes": 1},
    ],
)
def test_thin_evidence_still_gives_a_page(tmp_path: Path, options: dict[str, Any]) -> None:
    workspace = make_run(tmp_path / "run", ("tone",), **options)
    text = text_of(page_of(workspace))
    Tags(workspace.report.read_text("utf-8"))
    assert "None" not in text
    if options.get("openings") is False and "samples" in options:
        assert "The probability of the bad reply, when only the given replies could be said," in text
    if options.get("samples") == 0:
        assert "no reply was sampled" in text
    if options.get("probes") == 1:
        assert (
            "FAILED" in text
            and "not shown: 1 probes are too few, at least 5 are needed" in text
            and "[no interval]" in text
        )


def test_only_log_likelihoods_no_logs_and_a_release(tmp_path: Path) -> None:
    workspace = make_run(tmp_path / "run", ("tone",), openings=False, samples=0)
    verdict = Verdict.from_json(workspace.read_json(workspace.verdict))
    kept = tuple(c for c in verdict.comparisons if "logp" in c.measure)
    workspace.write_json(workspace.verdict, dataclasses.replace(verdict, comparisons=kept).to_json())
    workspace.write_json(workspace.training, {"learning_rate": 0.001, "log": [{"step": 3, "loss": "broken"}]})
    parity = {"dtype": "float32", "tolerance_nats": 1e-4, "mean_difference_nats": 2.5e-6, "worst_difference_nats": 3e-5}
    workspace.write_json(workspace.release, {**parity, "num_replies": 72})
    text = text_of(page_of(workspace))
    assert "None" not in text
    assert "how likely a bad reply is was not measured" in text
    assert "Plot not shown: none of this behaviour's measures is a probability" in text
    assert "Curves not shown: training.json holds no training log" in text
    assert "over 72 replies" in text and "2.5e-06 nats on average" in text


def test_thirty_behaviours(tmp_path: Path) -> None:
    names = tuple(f"behaviour {index}" for index in range(30))
    workspace = make_run(tmp_path / "run", names, probes=2, samples=1)
    page = page_of(workspace)
    Tags(page)
    assert page.count("<svg") == 31 + 1 + 4  # each behaviour, the overview, the curves


def test_without_a_verdict_nothing_is_written(tmp_path: Path) -> None:
    workspace = make_run(tmp_path / "run", ("tone",))
    workspace.write_text(workspace.report, "old")
    workspace.verdict.unlink()
    with pytest.raises(RunFolderError, match=r"verdict\.json"):
        write_report(workspace)
    assert workspace.report.read_text("utf-8") == "old"


# hostile text, no network, same bytes


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    workspace = make_run(tmp_path / "run", attacks=ATTACKS, text=BAD)
    page = page_of(workspace)
    for raw in HOSTILE[:2] + HOSTILE[3:5]:
        assert raw not in page
    tags = Tags(page)
    layout = "html head meta title style body header main nav section article figure figcaption div details summary"
    words_and_lists = "p h1 h2 h3 h4 small ul li dl dt dd a table thead tbody tr th td span strong code wbr pre bdi i"
    known = f"{layout} {words_and_lists} svg g path text line rect".split()
    assert {tag for tag, _ in tags.seen} <= set(known)
    for tag, attributes in tags.seen:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "style", "srcset", "action", "xlink:href"), (tag, name)
            assert name != "href" or str(value).startswith("#"), value
    text = text_of(page)
    prompt = text.partition("Replies side by side")[2]
    for place, where in (("a prompt", prompt), ("a name", text.partition("Limits")[0])):
        assert '<script>alert(1)</script>"><img src=x onerror=alert(1)>{{7*7}}{% raw %}' in where, place
    reasons = text.partition("What was dropped")[2]
    assert 'empty reply<script>alert(1)</script>"><img src=x onerror=alert(1)>' in reasons
    assert "Question 0 of 0? <script>" in text and "⟨U+0000⟩b⟨U+202E⟩c⟨U+D800⟩d⟨U+E0041⟩" in text
    assert "\x00" not in page and "\u202e" not in page


def test_hostile_names_inside_plots_stay_text(tmp_path: Path) -> None:
    """A behaviour's and an attack's name are drawn: they must be there, as text."""
    name = '<script>x</script>"&{{7*7}}'
    svg = str(plot_rows([Row(name + "\x00\u202e", *[Estimate(0.2, 0.1, 0.3, 9)] * 2)], f'{name}" onload="alert(1)'))
    assert "<script" not in svg and "&lt;script&gt;x&lt;/script&gt;" in svg and "{{7*7}}" in svg
    ((_, attributes), *_) = Tags(svg).seen
    assert set(attributes) == {"width", "height", "viewbox", "role", "aria-label"}
    workspace = make_run(tmp_path / "run", attacks=ATTACKS, text="<script>")
    drawn = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", page_of(workspace)))
    assert "tone&lt;script&gt;" in drawn and "attack: poem&lt;script&gt;" in drawn


def test_the_svg_is_rebuilt_from_an_allow_list() -> None:
    svg = clean_svg(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="x()" '
        'viewBox="0 0 1 1"><script>x()</script><style>*{}</style><image xlink:href="http://evil"/>'
        '<a xlink:href="javascript:x()"><text>a</text></a>'
        '<g onclick="x()"><path d="M0,0" fill="url(http://evil)" style="x"/><text class="k">b &lt;i&gt;</text></g>'
        "<foreignObject><p>c</p></foreignObject></svg>",
        "about",
    )
    assert (
        svg
        == '<svg viewBox="0 0 1 1" role="img" aria-label="about"><g><path d="M0,0" /><text>b &lt;i&gt;</text></g></svg>'
    )


def test_nothing_is_loaded(page: str) -> None:
    assert "http://" not in page and "https://" not in page
    assert "url(" not in page and "@import" not in page and "<script" not in page and "<link" not in page
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_the_same_run_gives_the_same_bytes(run: Workspace, page: str, tmp_path: Path) -> None:
    assert page_of(run) == page
    manifest = run.manifest()
    manifest["stages"]["report"] = {"inputs": {}, "outputs": {"report.html": "0"}, "seconds": 9.9, "finished": "2031"}
    run.write_json(run.manifest_file, manifest)
    assert page_of(run) == page
    twin = make_run(tmp_path / "elsewhere", attacks=ATTACKS)
    assert page_of(twin) == page


# words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not shown"),
        (0, "0 %"),
        (1e-7, "< 0.01 %"),
        (0.0042, "0.42 %"),
        (0.01, "1.0 %"),
        (0.042, "4.2 %"),
        (0.231, "23.1 %"),
        (0.9996, "99.96 %"),
        (0.99999, "> 99.99 %"),
        (1, "100 %"),
    ],
)
def test_percent(value: float | None, shown: str) -> None:
    assert words.percent(value).replace("\u00a0", " ") == shown


@pytest.mark.parametrize(
    ("rule", "measure", "said"),
    [
        ("after <= 0.01", "violating_opening_mass", "at most 1 %"),
        ("after >= 0.5", "reward_accuracy", "at least 50 %"),
        ("after - before <= 0", "violating_choice_probability", "must not rise"),
        ("after - before >= 0.05", "safe_opening_mass", "rises by at least 5 points"),
        ("after - before >= -0.5", "safe_logp_per_token", "falls by at most 0.5 nats"),
        ("after <= 0.6931", "validation_loss", "at most 0.6931 nats"),
        ("something <new>", "validation_loss", "something <new>"),
    ],
)
def test_rules_in_words(rule: str, measure: str, said: str) -> None:
    assert words.rule_words(rule, measure).replace("\u00a0", " ") == said


def test_a_reason_shows_the_digits_that_decide() -> None:
    close = Estimate(0.009, 0.008, 0.010004, 50)
    said = words.reason_words(close, "after <= 0.01", "violating_opening_mass", "")
    assert said.replace("\u00a0", " ") == "the interval's upper end is 1.0004 %"
    unscored = words.reason_words(
        close, "after <= 0.01", "violating_opening_mass", "not shown: 3 probes could not be scored"
    )
    assert unscored == "not shown: 3 probes could not be scored"


@pytest.mark.parametrize(
    ("accuracy", "length", "said"),
    [
        (Estimate(0.54, 0.47, 0.61, 200), 0.56, "not above chance; length alone reaches as much"),
        (Estimate(0.60, 0.53, 0.67, 200), 0.55, "above chance; not clearly more than length alone reaches"),
        (Estimate(0.80, 0.74, 0.86, 200), 0.55, "above chance; more than length alone reaches"),
        (Estimate(0.40, 0.33, 0.47, 200), 0.55, "below chance; length alone reaches as much"),
        (Estimate(1.0, None, None, 1), 0.5, "no interval, so nothing can be said about chance"),
    ],
)
def test_accuracy_is_stated_honestly(accuracy: Estimate, length: float, said: str) -> None:
    loss = Estimate(0.69, 0.68, 0.70, 200)
    none = Estimate(None, None, None, 0)
    own = {"reward_accuracy": accuracy, "length_accuracy": Estimate(length, 0.5, 0.6, 200), "validation_loss": loss}
    (view,) = accuracy_views([Comparison("b", measure, none, estimate, none) for measure, estimate in own.items()])
    assert view.statement.startswith(said)
    assert view.statement.endswith("loss not clearly below ln 2")


def test_displacement_is_said(run: Workspace) -> None:
    none = Estimate(None, None, None, 0)
    falls = Comparison("tone", "safe_logp", none, none, Estimate(-3.5, -4.0, -3.0, 30))
    unclear = Comparison("bypass", "safe_logp", none, none, Estimate(-0.1, -0.4, 0.2, 10))
    share = Comparison("tone", "displaced_share", none, Estimate(0.625, 0.5, 0.7, 30), none)
    said = displacement_words([falls, unclear, share], ()).replace("\u00a0", " ")
    assert said.startswith(
        "Yes, the good replies became less likely, beyond chance, in tone (−3.50 nats). On 40 held-out"
    )
    assert "by −2.65 nats a reply on average; on 62.5 % of the probes it fell" in said
    assert displacement_words([unclear], ()).startswith("Not measurably")
    assert "not shown" in displacement_words([falls], ("tone",))


def test_long_logs_are_averaged() -> None:
    points, size = thin([(step, float(step)) for step in range(1000)], most=300)
    assert (len(points), size) == (250, 4)
    assert points[0] == (3, 1.5)
    assert thin([(1, 0.5)]) == (((1, 0.5),), 1)
