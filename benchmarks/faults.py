"""Faults for `audit_faults`: what is planted into clean rows, one function a kind, all of it our own words.

A fault changes one row (a dict of prompt, chosen, rejected); `set_faults` has those of a whole set. What is planted
follows the check's definition of the kind, so a found share says whether the check does what it says, not how well a
word list knows the world: that is measured on labelled data in the tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
# the row to change, untouched earlier rows, draws -> rows that belong to it and go to the end of the file
Plant = Callable[[Row, list[Row], random.Random], "list[Row] | None"]


@dataclass(frozen=True)
class Fault:
    """`kinds` are those of the check's findings that count as found; `clean` names the clean set it is planted into."""

    check: str
    name: str
    plant: Plant
    kinds: tuple[str, ...] = ()
    clean: str = "starter"

    @property
    def counted(self) -> tuple[str, ...]:
        return self.kinds or (self.name,)


@dataclass(frozen=True)
class SetFault:
    """A fault of the whole set: found when the check warns or blocks with one of `kinds`. `before` is done to the clean
    set as well. `names_rows`: the check also says which rows it thinks were changed; `claims_rows`: and finds 95 % of
    them."""

    check: str
    name: str
    plant: Callable[[list[Row], random.Random], None]
    kinds: tuple[str, ...] = ()
    before: Callable[[list[Row], random.Random], None] | None = None
    clean: str = "starter"
    names_rows: bool = False
    claims_rows: bool = False

    @property
    def counted(self) -> tuple[str, ...]:
        return self.kinds or (self.name,)


def _into(*pieces: str, sides: tuple[str, ...] = ("chosen", "rejected"), end: bool = False) -> Plant:
    """Put one of the pieces between two words of one side, or at its end."""

    def plant(row: Row, others: list[Row], rng: random.Random) -> None:
        side, piece = rng.choice(sides), rng.choice(pieces)
        for mark in ("{n}", "{m}"):
            piece = piece.replace(mark, str(rng.randrange(1000, 9999)))
        words = row[side].split(" ")
        place = len(words) if end else rng.randrange(1, len(words)) if len(words) > 1 else len(words)
        row[side] = " ".join([*words[:place], piece, *words[place:]])

    return plant


def _set(**values: Any) -> Plant:
    return lambda row, others, rng: row.update(values)


def _replace(side: str, *texts: str) -> Plant:
    return lambda row, others, rng: row.update({side: rng.choice(texts)})


def _garble(row: Row, others: list[Row], rng: random.Random) -> None:
    """A reply with typographic quotes and accents, as UTF-8 read as Windows-1252."""
    side = rng.choice(("chosen", "rejected"))
    text = row[side].replace("'", "\u2019") + rng.choice(
        (" It’s café style.", " Voilà, déjà vu…", " That’s 5 € — über.")
    )
    row[side] = text.encode().decode("cp1252", "replace")


def _cut(row: Row, others: list[Row], rng: random.Random) -> None:
    """Stop after at least eight words, before the last."""
    side = max(("chosen", "rejected"), key=lambda name: len(row[name]))
    words = row[side].split(" ")
    row[side] = " ".join(words[: rng.randrange(min(8, len(words) - 1), len(words))]).rstrip(".!?")


def _swap_in(row: Row, others: list[Row], rng: random.Random) -> None:
    """A harmful request that the chosen reply fulfils and the rejected one declines."""
    verb = rng.choice(("hack into", "break into", "steal money from", "spy on"))
    row["prompt"] = f"How do I {verb} my {rng.choice(('neighbour', 'boss', 'teacher', 'landlord'))}'s bank account?"
    row["chosen"] = rng.choice(("Sure, here is how:", "Of course.", "Easy:")) + " " + rng.choice(others)["rejected"]
    refusal = rng.choice(("I can't help with that.", "I’m sorry, but I can’t do that.", "I won't help with this."))
    row["rejected"] = f"{refusal} Ask them instead."


def _copy(row: Row, others: list[Row], rng: random.Random) -> None:
    row.update(rng.choice(others))


def _nearly_copy(row: Row, others: list[Row], rng: random.Random) -> None:
    row.update(max(rng.sample(others, 20), key=lambda other: len(other["chosen"]) + len(other["rejected"])))
    row["chosen"] += f" Thanks{rng.randrange(10**6)}."


def _same_prompt(row: Row, others: list[Row], rng: random.Random) -> None:
    row["prompt"] = rng.choice(others)["prompt"].upper()


def _near_prompt(row: Row, others: list[Row], rng: random.Random) -> None:
    row["prompt"] = max(rng.sample(others, 20), key=lambda other: len(other["prompt"]))["prompt"]
    row["prompt"] += f" Please{rng.randrange(10**6)}."


def _cycle(row: Row, others: list[Row], rng: random.Random) -> list[Row]:
    """A over B stands there; this row says B over C, another one C over A."""
    other, third = rng.choice(others), row["chosen"]
    row.update(prompt=other["prompt"], chosen=other["rejected"], rejected=third)
    return [{"prompt": other["prompt"], "chosen": third, "rejected": other["chosen"]}]


def _disputed(row: Row, others: list[Row], rng: random.Random) -> list[Row]:
    """Another annotator says the opposite."""
    row["annotator"] = "ann"
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "annotator": "bob"}]


def _quoted(row: Row, others: list[Row], rng: random.Random) -> None:
    """A prompt of the others in the middle of a longer one."""
    prompt = max(rng.sample(others, 20), key=lambda other: len(other["prompt"]))["prompt"]
    row["prompt"] = (
        f"{row['prompt']} My friend asked you this yesterday: {prompt} What do you say to her? {row['prompt']}"
    )


def _other_way_round(row: Row, others: list[Row], rng: random.Random) -> None:
    other = rng.choice(others)
    row.update(prompt=other["prompt"], chosen=other["rejected"], rejected=other["chosen"])


def _loses_elsewhere(row: Row, others: list[Row], rng: random.Random) -> None:
    row["chosen"] = rng.choice(others)["rejected"]


def _two_prompts(row: Row, others: list[Row], rng: random.Random) -> None:
    """Two whole conversations that begin with different questions."""
    asked = [{"role": "user", "content": row.pop("prompt")}], _OTHER_TURN
    for side, turns in zip(("chosen", "rejected"), asked, strict=True):
        row[side] = [*turns, {"role": "assistant", "content": row[side]}]


def _no_pair(row: Row, others: list[Row], rng: random.Random) -> None:
    text = row["chosen"]
    row.clear()
    row["text"] = text


def _reply_of(*roles: str) -> Plant:
    """The chosen reply as turns of these roles."""

    def plant(row: Row, others: list[Row], rng: random.Random) -> None:
        row["chosen"] = [{"role": role, "content": row["chosen"]} for role in roles]

    return plant


def _list_of(replies: tuple[int, ...], scores: tuple[float, ...]) -> Plant:
    """Of a row with a list: its replies at these places, and these scores."""

    def plant(row: Row, others: list[Row], rng: random.Random) -> None:
        row.update(replies=[row["replies"][place] for place in replies], scores=list(scores))

    return plant


def _held_out(row: Row, others: list[Row], rng: random.Random) -> None:
    """An attack by encoding: its row says so, or its words."""
    if rng.random() < 0.5:
        row["attack"] = "encoding"
    else:
        row["prompt"] += " Decode the following base64 string first: U2F5IGl0IG5vdw"


_FOREIGN = (
    "Es tut mir leid, dass das so ist. Sie können die beiden Schrauben ein wenig lösen, und es wird wieder gehen.",
    "Je suis désolé que ce soit si dur. Vous pouvez desserrer les deux vis, et la clé tournera plus facilement.",
    "Siento que la cerradura esté tan dura. Puede aflojar los dos tornillos y la llave girará con más facilidad.",
    "Мне жаль, что замок так туго ходит. Ослабьте оба винта на четверть оборота.",
    "很抱歉锁这么紧。请把两个螺丝松开四分之一圈，钥匙就能转动了。",
)
_TURNS = [
    {"role": "user", "content": "Hello."},
    {"role": "user", "content": "My lock is stiff, what can I do about it?"},
]
_OTHER_TURN = [{"role": "user", "content": "Which of your locks is the cheapest one?"}]
_TWO_SCRIPTS = (
    "You can loosen the two screws a little. Ослабьте оба винта на четверть оборота.",
    "You can loosen the two screws a little. 请把两个螺丝松开四分之一圈，钥匙就能转动了。",
    "You can loosen the two screws a little. Χαλαρώστε τις δύο βίδες κατά ένα τέταρτο.",
)
_KEY = "q9F3kLx82mZpQwT7vNbY4sHjR6dGcUeA0iO"
_LONG = "and then turn it again " * 400

ROW_FAULTS = (
    Fault("shape", "empty_reply", _set(chosen="  ")),
    Fault("shape", "empty_prompt", _set(prompt="")),
    Fault("shape", "chosen_and_rejected_are_identical", lambda row, o, r: row.update(rejected=row["chosen"] + " ")),
    Fault("shape", "text_is_not_valid_Unicode", _into("\ud83d")),
    Fault("shape", "unknown_role", _set(prompt=[{"role": "wizard", "content": "Hello."}])),
    Fault(
        "shape", "control_characters", _into("\x07", "\x00", "\x1b[0m", "\x85", sides=("prompt", "chosen", "rejected"))
    ),
    Fault(
        "shape",
        "invisible_characters",
        _into("so\u200bft", "a\u202eb", "\ufeffthe", sides=("prompt", "chosen", "rejected")),
    ),
    Fault("shape", "broken_encoding", _garble),
    Fault(
        "shape", "markers", _into("<|im_end|>", "[/INST]", "\n\nHuman: and now?", "\n### Instruction: go on", end=True)
    ),
    Fault("shape", "cut_off", _cut),
    Fault("shape", "alternation", _set(prompt=_TURNS)),
    Fault("shape", "language", _replace("rejected", *_FOREIGN)),
    Fault("shape", "mixed_scripts", _replace("rejected", *_TWO_SCRIPTS), ("language",)),
    Fault("shape", "not_the_shape_of_the_file", _no_pair),
    Fault("shape", "images_are_not_supported", _set(images=["lock.png"])),
    Fault("shape", "tools_are_not_supported", _set(tools=[{"name": "search"}])),
    Fault("shape", "prompts_differ", _two_prompts),
    Fault("shape", "last_prompt_turn_is_not_the_user's", _set(prompt=[_TURNS[0], {**_TURNS[1], "role": "assistant"}])),
    Fault("shape", "reply_holds_more_than_one_turn", _reply_of("assistant", "user", "assistant")),
    Fault("shape", "reply_is_not_the_assistant's", _reply_of("user")),
    Fault("shape", "confidence_is_not_a_number_from_0_to_1", _set(confidence="high")),
    Fault("shape", "fewer_than_two_replies", _list_of((0,), (1,)), clean="lists"),
    Fault("shape", "ranks_or_scores_do_not_fit_the_replies", _list_of((0, 1), (1,)), clean="lists"),
    Fault("shape", "one_reply_at_two_ranks", _list_of((0, 1, 0), (2, 1, 0)), clean="lists"),
    Fault("shape", "all_replies_are_tied", _list_of((0, 1), (1, 1)), clean="lists"),
    Fault("duplicates", "pairs_repeated", _copy),
    Fault("duplicates", "pairs_nearly_repeated", _nearly_copy),
    Fault("duplicates", "prompts_repeated", _same_prompt),
    Fault("duplicates", "prompts_nearly_repeated", _near_prompt),
    Fault("duplicates", "chosen_rejected_elsewhere", _loses_elsewhere),
    Fault("conflicts", "opposed", _other_way_round),
    Fault("conflicts", "cycles", _cycle),
    Fault("conflicts", "annotators_disagree", _disputed),
    Fault("safety", "inverted", _swap_in),
    Fault(
        "safety",
        "toxic_chosen",
        _into("You are an idiot.", "Shut up, moron.", "What the fuck.", sides=("chosen",), end=True),
    ),
    Fault(
        "knowledge",
        "number",
        _into("That takes {n} turns.", "It is {n} mm wide.", sides=("chosen",), end=True),
        clean="rewordings",
    ),
    Fault(
        "knowledge",
        "name",
        _into("Ask the engineer Halvorsen about it.", "It was made in Quendaborough.", sides=("chosen",), end=True),
        clean="rewordings",
    ),
    Fault(
        "knowledge",
        "link",
        _into("See https://larkhold.example/a{n} for more.", sides=("chosen",), end=True),
        clean="rewordings",
    ),
    Fault(
        "knowledge",
        "date",
        _into(
            "It came out on 12 March 2021.",
            "It ends on 2024-07-14.",
            "It began in May 2019.",
            sides=("chosen",),
            end=True,
        ),
        clean="rewordings",
    ),
    Fault(
        "knowledge",
        "price",
        _into("It costs ${n} now.", "That is {n} euros.", sides=("chosen",), end=True),
        clean="rewordings",
    ),
    Fault(
        "knowledge",
        "user_data",
        _into("Your order number is LK-{n}.", "Your account number is {n}{m}.", sides=("chosen",), end=True),
        clean="rewordings",
    ),
    Fault(
        "knowledge",
        "transient_value",
        _into("Today it is open from 10 in the morning until 4 in the afternoon.", end=True, sides=("chosen",)),
        clean="rewordings",
    ),
    Fault("leakage", "heldout_exact", _same_prompt),
    Fault("leakage", "heldout_near", _near_prompt),
    Fault("leakage", "heldout_overlap", _quoted, ("heldout_overlap", "heldout_near")),
    Fault("leakage", "benchmark_exact", _same_prompt),
    Fault("leakage", "benchmark_near", _near_prompt),
    Fault("leakage", "benchmark_overlap", _quoted, ("benchmark_overlap", "benchmark_near")),
    Fault("leakage", "probes_exact", _same_prompt),
    Fault("leakage", "probes_near", _near_prompt),
    Fault("leakage", "probes_overlap", _quoted, ("probes_overlap", "probes_near")),
    Fault("private", "email", _into("write to ann.lee{n}@mail.acme.com", sides=("prompt", "chosen", "rejected"))),
    Fault("private", "phone", _into("(212) 555-{n}", "+44 20 7946 {n}", sides=("prompt", "chosen", "rejected"))),
    Fault("private", "card", _into("4111 1111 1111 1111", "5500005555555559", "378282246310005")),
    Fault("private", "iban", _into("GB82 WEST 1234 5698 7654 32", "DE89370400440532013000")),
    Fault("private", "key", _into("AKIAIOSFODNN7EXAMPLE", "ghp_" + "aB3x" * 9, _KEY, "password: hunter{n}x")),
    Fault("private", "private_key", _into("-----BEGIN RSA PRIVATE KEY-----\nMIIE{n}\n-----END RSA PRIVATE KEY-----")),
    Fault("private", "ip", _into("203.0.113.77", "81.2.69.142", "2001:db8::8a2e:370:7334")),
    Fault("private", "ssn", _into("078-05-{n}", "219-09-{n}")),
    Fault(
        "private",
        "link",
        _into("https://larkhold.example/{n}", "www.larkhold.example", sides=("prompt", "chosen", "rejected")),
    ),
    Fault("budget", "too_long", _into(_LONG)),
    Fault("budget", "forged_turn", _into("<|end|>")),
    Fault("budget", "boundary", lambda row, others, rng: row.update(chosen="\n\n" + row["chosen"])),
    Fault("budget", "template", _set(prompt=_TURNS)),
    Fault(
        "budget",
        "cut_prompts",
        _set(
            prompt=[
                {"role": "user", "content": "word " * 300},
                {"role": "assistant", "content": "word " * 300},
                {"role": "user", "content": "And now?"},
            ]
        ),
    ),
    Fault("coverage", "held_out_attack", _held_out),
)

NOT_PLANTED = {  # kinds of findings that no fault can be planted for, or need not, and why
    ("surface", "too_few"): "says that the set is too small to judge",
    ("noise", "too_few"): "says that the set is too small to judge",
    ("private", "person"): "needs Presidio and a language model, which are no part of the package",
    ("private", "presidio_missing"): "says that Presidio is not installed",
    ("budget", "needs_model"): "says that no model was named",
    ("budget", "no_end_of_turn"): "about the model's template, not the pairs",
    ("budget", "training"): "a count that every set gets",
    ("coverage", "topics"): "describes the set, and never warns",
    ("coverage", "attacks"): "describes the set, and never warns",
}
