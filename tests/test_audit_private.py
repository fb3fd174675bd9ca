"""Private data: every kind is found where it stands, what only looks like it is not, and no text takes long."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from demeanor.audit import Scope, audit_pairs, prepared
from demeanor.audit import private as private_check
from demeanor.audit.private import KINDS, find_private
from demeanor.curate import Settings, curate_pairs
from demeanor.errors import InputError
from demeanor.pairs import PairStore
from tests.audited import audited, write_pairs
from tests.conftest import shared

KEY = "q9F3kLx82mZpQwT7vNbY4sHjR6dGcUeA0iO"
PLANTED = {
    "private_key": ["-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"],
    "key": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "aB3x" * 9,
        "sk-proj-abcDEF1234567890abcdef",
        "sk-abcdefghijKlmnopqrstUv",
        KEY,
    ],
    "card": ["4111 1111 1111 1111", "5500005555555559", "3782-822463-10005"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000"],
    "ssn": ["078-05-1120"],
    "email": ["bob.smith+news@mail.acme.co.uk", "jürgen@bücher.de"],
    "ip": ["203.0.113.77", "2001:db8::8a2e:370:7334"],
    "link": ["https://acme.com/a?b=1", "www.acme.org"],
    "phone": ["(212) 555-0123", "+44 20 7946 0958", "1-800-555-0199", "07700 900123", "07911123456", "+4915112345678"],
}
INNOCENT = [
    "On 2020-10-12 we sold 1,234,567.00 units at 3.14159265358979 each, 10-20-30.",
    "ISBN 978-3-16-148410-0, version 10.2.33.4, section 1.2.3.4, mask 255.255.255.0, router 192.168.1.1, 127.0.0.1",
    "4111 1111 1111 1112 and 1234567890123456 are no cards; GB82 WEST 1234 5698 7654 33 is no account.",
    "The word Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft is long.",
    "std::vector<int> at 12:30:45, @someone, a@b, 000-12-3456, 666-12-3456, 123-45-67890",
    "commit 9fceb02d0ae598e95dc970b74767f19372d61af8, the password is required, a secret: nobody knows",
    "Password: please choose one\nName: yours\nPassword: required\nThe password: letters and digits. My pwd: gone!",
    "login(user=name, password=credential) password = getpass() <input name=\"password\" type='password'> pwd=$SECRET",
    "{'password': 'your_password', \"passwd\": \"********\"} password=hashed_value&x=y PASSWORD=<geheim> sk-css-names",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PLANTED.items() for text in texts])
@pytest.mark.parametrize("around", ["{}", "Look: {}.", "say ({}), then go", "\n{}\n"])
def test_each_kind_is_found_where_it_stands(kind: str, text: str, around: str) -> None:
    whole = around.format(text)
    start = whole.index(text)
    assert find_private(whole) == [(kind, start, start + len(text))]


@pytest.mark.parametrize("text", INNOCENT)
def test_what_only_looks_like_it_is_not_found(text: str) -> None:
    assert find_private(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("api_key = 'a8f5f167f44f4964e6c998dee827110c'", "a8f5f167f44f4964e6c998dee827110c"),
        ("Password: hunter22xyz", "hunter22xyz"),
        ("postgres://admin:hunter22@db.acme.com/x", "admin:hunter22"),
        ("run with password=letmein", "letmein"),
        ("PGPASSWORD=letmein psql", "letmein"),
        ('{"user": "bob", "password": "letmein"}', "letmein"),
        ("$pwd => 'opensesame'", "opensesame"),
        ("user: bob\npassword: letmein\nhost: db", "letmein"),
    ],
)
def test_a_secret_is_known_by_what_it_is_assigned_to(text: str, found: str) -> None:
    (kind, start, end), *_ = find_private(text)
    assert (kind, text[start:end]) == ("key", found)


@pytest.mark.parametrize("number", ["4915112345678", "4222222222222", "378282246310005"])
@pytest.mark.parametrize("around", ["tel:+{}", "tel:{}", "call me at {} now", "WhatsApp: {}", "+{}"])
def test_a_number_that_is_called_is_no_card_even_where_luhn_agrees(number: str, around: str) -> None:
    assert find_private(f"Pay with {number}.") == [("card", 9, 9 + len(number))]
    assert [kind for kind, *_ in find_private(around.format(number))] == ["phone"]
    assert [kind for kind, *_ in find_private("call me: 4111111111111111, or 3782-822463-10005")] == ["card", "card"]


def test_spans_do_not_overlap_and_are_in_order() -> None:
    text = f"mail a.b@acme.com or https://bob:pass99@acme.com/?t={KEY}, card 4111111111111111, call 212-555-0123"
    spans = find_private(text)
    assert [kind for kind, *_ in spans] == ["email", "key", "key", "card", "phone"]
    assert all(first[2] <= second[1] for first, second in pairwise(spans))


def test_the_check_says_which_side_and_shows_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Question {n}?", "chosen": f"Answer {n}.", "rejected": "No."} for n in range(40)]
    rows[3]["chosen"] += f" The key is {KEY}."
    rows[4]["rejected"] += " Write to bob@acme.com."
    rows[5]["prompt"] = "I am bob@acme.com, who are you?"
    file.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "store").mkdir()
    audit = audit_pairs(PairStore.collect([file], tmp_path / "store"), only=["private"])
    by_kind = {finding.kind: finding for finding in audit.findings}
    assert set(by_kind) == {"key", "email"}
    assert by_kind["key"].severity == "blocks" and by_kind["email"].severity == "warns"
    assert by_kind["email"].details == {"prompt": 1, "chosen": 0, "rejected": 1}
    assert by_kind["email"].estimate.value == 2 / 40
    assert audit.flagged["private", "key"].tolist() == [3] and audit.flagged["private", "email"].tolist() == [4, 5]
    assert KEY not in json.dumps(audit.to_json()) and "bob@acme.com" not in json.dumps(audit.to_json())


class Engine:
    """Presidio's analyzer, which knows one person."""

    def analyze(self, text: str, language: str, entities: list[str], score_threshold: float) -> list[Any]:
        assert entities == ["PERSON"]
        start = text.find("Ann Lee")
        return [SimpleNamespace(start=start, end=start + 7)] if start >= 0 else []


@pytest.fixture
def presidio(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a Presidio whose analyzer is made by the first argument; the others are modules that are not there."""

    def install(engine: Callable[[], Any], *absent: str) -> None:
        private_check._presidio.cache_clear()
        module = ModuleType("presidio_analyzer")
        module.AnalyzerEngine = engine  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
        monkeypatch.setattr(private_check, "find_spec", lambda name: None if name in absent else True)

    yield install
    private_check._presidio.cache_clear()


def ask_ann(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{n}?", "chosen": f"Ask Ann Lee, {n}.", "rejected": f"No. {n}"} for n in range(1, 5)]
    return write_pairs(tmp_path / "pairs.jsonl", rows)


def test_presidio_is_asked_only_when_wanted(tmp_path: Path, presidio: Callable[..., None]) -> None:
    file = ask_ann(tmp_path)

    def found(presidio: float) -> dict[str, Any]:
        scope = Scope(limits={"private": {"presidio": presidio}})
        return {finding.kind: finding for finding in audited(file, tmp_path, "private", scope).findings}

    presidio(Engine, "presidio_analyzer")
    assert not found(0)
    assert (
        set(found(1)) == {"presidio_missing"} and "spacy download en_core_web_lg" in found(1)["presidio_missing"].remedy
    )
    presidio(Engine)
    assert not found(0)
    (person,) = found(1).values()
    assert person.kind == "person" and person.examples[0].excerpt == "chosen: Ann..."


def test_presidio_without_its_model_is_one_line_before_the_pairs_are_read(presidio: Callable[..., None]) -> None:
    """spaCy would download the model, and end the process with 1, which says that a finding blocks."""
    asked = Scope(limits={"private": {"presidio": 1}})

    def ends() -> None:
        raise SystemExit(1)

    presidio(ends, "en_core_web_lg")
    with pytest.raises(InputError, match=r"en_core_web_lg is not installed -- python -m spacy download en_core_web_lg"):
        prepared(asked)
    presidio(ends)
    with pytest.raises(InputError, match=r"does not start: SystemExit: 1 -- pip install .*download en_core_web_lg"):
        prepared(asked)


def test_curate_redacts_persons_with_presidio_and_never_without(tmp_path: Path, presidio: Callable[..., None]) -> None:
    file, settings = ask_ann(tmp_path), Settings(kinds=("person",), balance="none", heldout=0, near=0)
    presidio(Engine, "presidio_analyzer")
    with pytest.raises(InputError, match=r"Presidio: is not installed.* -- pip install .*spacy download"):
        curate_pairs([tmp_path / "absent.jsonl"], tmp_path / "out", settings)  # said before anything is read
    curate_pairs([file], tmp_path / "plain", Settings(balance="none", heldout=0, near=0))  # nor needed by default
    presidio(Engine)
    curated = curate_pairs([file], tmp_path / "out", settings)
    assert curated.altered == {"redacted": 4}
    assert "Ask [PERSON], 1." in (tmp_path / "out" / "train.jsonl").read_text()


def test_hh_rlhf_holds_what_it_holds() -> None:
    """Rows of the 2,000 with each kind, in either transcript; seen by eye: real ones but for made-up numbers."""
    with gzip.open(shared("data/hh-rlhf/harmless-base.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    counts = Counter(kind for row in rows for kind in {k for text in row.values() for k, _, _ in find_private(text)})
    assert counts == {"link": 42, "phone": 11, "email": 5, "ssn": 1}
    assert set(counts) < set(KINDS)


HOSTILE = {
    "one word": "a" * 1_000_000,
    "digits": "1" * 100_000,
    "brackets": "(" * 500_000 + ")" * 500_000,
    "signs": "a@" * 300_000,
    "dots": "a." * 300_000,
    "groups": "1 " * 300_000,
    "tokens": "eyJaaaaaaaaaaaa." * 60_000,
    "keys without an end": "-----BEGIN PRIVATE KEY-----" * 30_000,
    "links": "http://" * 140_000,
    "accounts": "AB12 " * 200_000,
    "passwords": "password is " * 80_000,
    "addresses": "2001:" * 200_000,
    "calls": "call me at " * 90_000,
    "dense": "aA1" * 300_000,
    "assigned": "pwd=" * 200_000,
    "listed": "a: b\n" * 200_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_takes_linear_work(name: str) -> None:
    """A backtracking pattern would take hours here: the test would not end."""
    find_private(HOSTILE[name])
