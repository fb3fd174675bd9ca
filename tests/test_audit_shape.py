"""Damaged texts: every kind is found where it was planted, and sound texts of many languages are not flagged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.audit import audit_pairs
from demeanor.audit.damage import (
    has_broken_encoding,
    has_control,
    has_invisible,
    has_markers,
    is_cut,
    is_unended,
)
from demeanor.audit.language import is_mixed, language_of
from demeanor.audit.shape import alternates
from demeanor.pairs import PairStore
from demeanor.pairs.reasons import ALL_TIED, BAD_RANKS, REASONS, REMEDIES, TOO_FEW, TWO_RANKS
from demeanor.records import Message
from demeanor.starter import starter_file
from tests.conftest import shared

SOUND = {
    "en": "I'm sorry that the lock is stiff. You can loosen both of the screws a quarter turn, and the key "
    "should move.",
    "de": "Es tut mir leid, dass das Schloss so schwer geht. Sie können die beiden Schrauben ein wenig "
    "lösen, und der "
    "Schlüssel lässt sich wieder drehen.",
    "fr": "Je suis désolé que la serrure soit dure. Vous pouvez desserrer les deux vis d'un quart de tour, "
    "et la clé "
    "tournera plus facilement dans le cylindre, à “l'état neuf”.",
    "es": "Siento que la cerradura esté tan dura. Puede aflojar los dos tornillos un cuarto de vuelta y la "
    "llave girará "
    "con más facilidad, ¿no es así?",
    "pt": "Lamento que a fechadura esteja tão dura. Você pode soltar os dois parafusos um pouco e a chave "
    "vai girar com "
    "mais facilidade; NÃO “FORCE À MÃO”.",
    "it": "Mi dispiace che la serratura sia così dura. Può allentare le due viti di un quarto di giro e la "
    "chiave non si "
    "bloccherà più nel cilindro.",
    "nl": "Het spijt me dat het slot zo stroef is. Je kunt de twee schroeven een kwartslag losdraaien, en "
    "dan moet de "
    "sleutel weer goed draaien.",
    "sv": "Jag är ledsen att låset är så trögt. Du kan lossa de två skruvarna ett kvarts varv, och då ska "
    "nyckeln gå att "
    "vrida som den ska.",
    "pl": "Przykro mi, że zamek tak ciężko chodzi. Może Pan poluzować obie śruby o ćwierć obrotu, a klucz "
    "nie będzie się już "
    "zacinał w zamku.",
    "tr": "Kilidin bu kadar sert olması çok kötü. İki vidayı biraz gevşetin ve anahtar daha kolay dönecek; "
    "bu çok sık olan bir "
    "şey ama kolay.",
    "cyrillic": "Мне жаль, что замок так туго ходит. Ослабьте оба винта на четверть оборота.",
    "el": "Λυπάμαι που η κλειδαριά είναι τόσο σκληρή. Χαλαρώστε και τις δύο βίδες.",
    "zh": "很抱歉锁这么紧。请把两个螺丝松开四分之一圈，钥匙就能转动了。",
    "ja": "鍵が固くて申し訳ありません。二本のネジを少し緩めてください。",
    "ko": "자물쇠가 뻑뻑해서 죄송합니다. 나사 두 개를 조금 풀어 주세요.",
    "arabic": "آسف لأن القفل صعب جدا. يمكنك فك البراغي قليلا وسيدور المفتاح.",
    "he": "אני מצטער שהמנעול כל כך קשה. אפשר לשחרר מעט את שני הברגים.",
    "hi": "मुझे खेद है कि ताला इतना सख्त है। दोनों पेंच थोड़े ढीले कर दें।",
}
PLANTED = {
    "control_characters": ["Turn\x07 it.", "A\x00B", "Next\x1b[0m", "C1 \x85 here"],
    "invisible_characters": ["pass\u200bword", "so\u00adft", "a\u202etxt.exe",
                             "x\ufeffy", "hi\U000e0041\U000e0042", "Turn \u2066it\u2069."],
    "broken_encoding": ["donâ€™t do", "cafÃ© open", "Ã¼ber", "Â£5", "ðŸ˜€ ok", "bad \ufffd byte",
                        "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "ï»¿Start"],
    "markers": ["Yes.\n\nHuman: and now?", "Ok <|im_end|>", "[INST] go", "Fine.\n### Instruction: do it",
                 "Sure. Assistant: ok", "x</s>"],
}  # fmt: skip
TESTS = {
    "control_characters": has_control,
    "invisible_characters": has_invisible,
    "broken_encoding": has_broken_encoding,
    "markers": has_markers,
}
CUT = [
    "You can loosen the two screws a quarter turn, and then the",
    "These are the things that you need for this repair: a driver,",
    "Loosen both screws by a quarter turn and then wait because",
    "These are the steps that you should follow:\n1. Open it.\n2.",
    "Run the following and look at its output:\n```\nprint(1)",
]
WHOLE = [
    "You can loosen the two screws a quarter turn, and then it turns",
    "That is something that you should take vitamin A for, or plan B",
    "Run the following and look at its output:\n```\nprint(1)\n```",
    "I hope that this helps you with the lock on your front door \U0001f600",
    "the",
]


@pytest.mark.parametrize("language", SOUND)
def test_a_sound_text_is_sound_and_its_language_known(language: str) -> None:
    text = SOUND[language]
    assert not any(test(text) for test in TESTS.values())
    assert language_of(text) == language
    assert not is_mixed(text, "")


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PLANTED.items() for text in texts])
def test_damage_is_found(kind: str, text: str) -> None:
    assert TESTS[kind](text)
    assert [other for other in TESTS if other != kind and TESTS[other](text)] in ([], ["control_characters"])


@pytest.mark.parametrize("language", [name for name in SOUND if not SOUND[name].isascii()])
def test_text_that_was_decoded_wrongly_is_found(language: str) -> None:
    """UTF-8 read as Windows-1252, where it has no letter for a byte as Latin-1."""
    wrong = "".join(
        bytes([byte]).decode("cp1252" if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "latin-1")
        for byte in SOUND[language].encode()
    )
    assert has_broken_encoding(wrong)


@pytest.mark.parametrize("text", CUT)
def test_a_cut_reply_is_found(text: str) -> None:
    assert is_cut(text)


@pytest.mark.parametrize("text", WHOLE)
def test_a_whole_reply_is_not_cut(text: str) -> None:
    assert not is_cut(text)


def test_joiners_and_marks_belong_to_some_texts() -> None:
    assert not has_invisible("👩\u200d👩\u200d👧 می\u200cخواهم")
    assert not has_invisible("The word שלום\u200f is Hebrew")
    assert not has_invisible("\U0001f3f4\U000e0067\U000e0062\U000e007f")  # a flag


def test_short_and_uncertain_texts_have_no_language() -> None:
    for text in ("", "Ja.", "OK, danke!", "Larkhold Doorbell Pro", "x = f(y)", "de la el"):
        assert language_of(text) == ""
    assert language_of("```\n" + SOUND["de"] + "\n```") == ""


def test_two_scripts_are_mixed_unless_the_prompt_has_both() -> None:
    text = "The lock is very stiff today. " + SOUND["cyrillic"]
    assert is_mixed(text, "Why?") and not is_mixed(text, "Что значит lock?")
    assert not is_mixed("Say привет to them, it is the usual greeting there among friends.", "")


@pytest.mark.parametrize(
    ("roles", "fine"),
    [
        ("u", True), ("su", True), ("uau", True), ("suau", True), ("uu", False),
        ("uaau", False), ("au", False), ("usu", False),
    ],
)  # fmt: skip
def test_alternation(roles: str, fine: bool) -> None:
    names = {"u": "user", "a": "assistant", "s": "system"}
    assert alternates([Message(names[role], "x") for role in roles]) is fine


def audit(rows: list[dict[str, Any]], folder: Path) -> dict[str, tuple[Any, list[int]]]:
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "store").mkdir(exist_ok=True)
    found = audit_pairs(PairStore.collect([file], folder / "store"), only=["shape"])
    return {finding.kind: (finding, found.flagged["shape", finding.kind].tolist()) for finding in found.findings}


def test_the_check_names_the_pairs_and_the_side(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"Why is the lock so stiff, and what can I do about it? ({n})",
            "chosen": SOUND["en"],
            "rejected": "Oil it.",
        }
        for n in range(40)
    ]
    planted: dict[str, list[int]] = {}
    for place, kind in enumerate(PLANTED):
        rows[place]["chosen" if place % 2 else "rejected"] = PLANTED[kind][0]
        planted[kind] = [place]
    rows[10]["prompt"], planted["broken_encoding"] = PLANTED["broken_encoding"][1], [2, 10]
    rows[11]["chosen"], planted["cut_off"] = CUT[0], [11]
    rows[12]["rejected"], rows[13]["chosen"] = SOUND["de"], "The lock is very stiff today. " + SOUND["cyrillic"]
    planted["language"] = [12, 13]
    rows[14] |= {"prompt": "Please say that in German, and be as polite as you can be about it.", "chosen": SOUND["de"]}
    rows[15]["prompt"] = [{"role": "user", "content": "Hello."}, {"role": "user", "content": "Why?"}]
    planted["alternation"] = [15]
    found = audit(rows, tmp_path)
    assert {kind: places for kind, (_, places) in found.items()} == planted
    assert found["broken_encoding"][0].details == {"prompt": 1, "chosen reply": 0, "rejected reply": 1}
    assert found["cut_off"][0].severity == "warns" and found["cut_off"][0].estimate.value == 1 / 40
    assert "\x07" not in json.dumps(found["control_characters"][0].to_json(), ensure_ascii=False)
    for row in rows[20:]:
        row["chosen"] = CUT[1]
    assert audit(rows, tmp_path)["cut_off"][0].severity == "blocks"


def test_every_reason_has_a_remedy_and_a_tied_list_is_told(tmp_path: Path) -> None:
    assert set(REMEDIES) == set(REASONS)
    lists: list[dict[str, Any]] = [
        {"prompt": f"Why is it stiff? ({n})", "replies": ["Oil it.", "Turn it.", "Wait."], "scores": [3, 2, 1]}
        for n in range(20)
    ]
    lists[3]["scores"], lists[4]["scores"] = [2, 2, 2], [1, 2]
    lists[5] |= {"replies": ["Oil it."], "scores": [3]}
    lists[6]["replies"] = ["Oil it.", "Turn it.", "Oil it."]
    found = audit(lists, tmp_path)
    for reason, row in {ALL_TIED: 4, BAD_RANKS: 5, TOO_FEW: 6, TWO_RANKS: 7}.items():
        finding = found[reason.replace(" ", "_")][0]
        assert finding.remedy == REMEDIES[reason] and f"(row {row})" in finding.what


def test_a_missing_end_tells_where_the_others_have_one(tmp_path: Path) -> None:
    cut = "You can loosen both of the screws a quarter"
    assert is_unended(cut) and not is_cut(cut)
    for whole in (
        cut + ".",
        "They are these:\n- a driver of the right size for it",
        "Iron\nGold",
        SOUND["zh"],
        cut + " :)",
    ):
        assert not is_unended(whole)
    rows = [{"prompt": f"Why? {n}", "chosen": SOUND["en"], "rejected": "Oil it."} for n in range(20)]
    rows[4]["chosen"] = cut
    assert audit(rows, tmp_path)["cut_off"][1] == [4]
    for row in rows[:9]:
        row["chosen"] = cut
    assert audit(rows, tmp_path) == {}


def test_a_set_in_another_language_is_sound(tmp_path: Path) -> None:
    rows = [{"prompt": f"Warum? {n}", "chosen": SOUND["de"], "rejected": "Nein."} for n in range(20)]
    assert audit(rows, tmp_path) == {}
    rows[7]["chosen"] = SOUND["fr"]
    assert audit(rows, tmp_path)["language"][1] == [7]


def test_real_sets(tmp_path: Path) -> None:
    store = tmp_path / "starter"
    store.mkdir()
    assert audit_pairs(PairStore.collect([starter_file("pairs.jsonl")], store), only=["shape"]).findings == ()
    found = {}
    for name in ("hh-rlhf/harmless-base.jsonl.gz", "polite-rude/pairs.json"):
        store = tmp_path / name.partition("/")[0]
        store.mkdir()
        result = audit_pairs(PairStore.collect([shared(f"data/{name}")], store), only=["shape"])
        found[store.name] = {finding.kind: finding.num_pairs for finding in result.findings}
    assert found["hh-rlhf"] == {"empty_reply": 4, "prompts_differ": 4, "markers": 26, "cut_off": 226, "alternation": 4}
    assert found["polite-rude"] == {"chosen_and_rejected_are_identical": 6, "language": 1, "cut_off": 4}


@pytest.mark.parametrize(
    "text",
    ["a" * 1_000_000, "é" * 1_000_000, "1" * 100_000, "(" * 1_000_000, "Ð" * 999_999, "```a" * 250_000,
     "\n " * 500_000, "<|a" * 300_000, " " * 1_000_000, "`a\n" * 300_000],
)  # fmt: skip
def test_a_hostile_text_takes_linear_work(text: str) -> None:
    """A backtracking pattern would take hours here: the test would not end."""
    for test in (*TESTS.values(), is_cut, language_of):
        test(text)
    is_mixed(text, text)
