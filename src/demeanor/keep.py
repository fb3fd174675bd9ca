"""Neutral prompts -> pairs that hold the model where it is.

What a training teaches it teaches elsewhere as well: a model that learned to turn back from a bad reply also turns in
the middle of small talk. So the model answers prompts that no behaviour is about, before any training, and each answer
wins over a reply to a prompt of the training: what is taught there stays there, and with an SFT term
(`training.sft_weight`) the answer's own probability is held up. Rehearsal by the model's own replies: Qi et al. (2024,
"Safety alignment should be made more than just a few tokens deep", section 3) mix their recovery examples with replies
that the first model gave to ordinary instructions.

What loses is drawn from winning and losing replies alike. With winning ones alone, of which many refuse, the starter
unlearned to refuse: of XSTest's unsafe prompts it refused 18 % in place of 38. For the same reason a reply that begins
in one of the good ways is kept, as often as the model gives it. Left out are replies that a behaviour forbids (what the
training is to change is not to be kept), that have no end within the tokens they may take, that were said before, or
that do not read back as they were said (a special token or half a character among them).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demeanor.contract import Contract
from demeanor.errors import InputError, PairsError
from demeanor.judges.rule import judge_reply
from demeanor.model import end_of_turn_ids, find_model, load_model, load_tokenizer
from demeanor.pairs import read_pairs
from demeanor.pairs.columns import canonical
from demeanor.pairs.files import read_values
from demeanor.pairs.probes import DIALOGS, kind_of, probe_path, read_probes
from demeanor.pairs.reasons import Unusable
from demeanor.pairs.turns import read_turns
from demeanor.plan import read_all_pairs
from demeanor.progress import Progress
from demeanor.records import Message
from demeanor.tokens import Refused, Tokenizer, make_tokenizer

PROMPTS_AT_A_TIME = 16


def keep_pairs(
    contract: Contract,
    prompts: str | Path,
    *,
    systems: Sequence[str] = (),
    samples: int = 2,
    max_new_tokens: int = 64,
    behaviour: str = "kept",
    seed: int = 0,
    progress: Progress,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows of pairs whose chosen reply is the model's own, at temperature 1, and the replies left out, by reason.

    Args:
        prompts: prompts, dialogs (up to their last question) or pairs (their prompts alone are read).
        systems: each prompt is answered under each of these too, in place of a system prompt of its own or the
            contract's.
        samples: replies for each prompt and system prompt.
        behaviour: that the rows name; no behaviour of the contract, whose probes and limits they would become.

    Raises:
        InputError: there is no prompt, or no reply to put against an answer, or every answer was left out.
    """
    from demeanor.measure.sample import sample_replies

    if behaviour in contract.behaviours:
        raise InputError(f"{behaviour} is a behaviour of the contract: kept pairs would be taken for its own pairs",
                         where="--behaviour", remedy="another name")  # fmt: skip
    asked = read_prompts(prompts, progress)
    source = find_model(contract.model, revision=contract.revision)
    inner = load_tokenizer(source, contract)
    tokenizer = make_tokenizer(inner, end_of_turn_ids(source, inner))
    losing = replies_elsewhere(contract, tokenizer)
    left_out: Counter[str] = Counter()
    questions, ids = _rendered(asked, systems, samples, tokenizer, contract, left_out)
    model = load_model(source, contract)
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    known: set[tuple[tuple[Message, ...], str]] = set()
    with progress.bar("answer", len(ids)) as advance:
        for start in range(0, len(ids), PROMPTS_AT_A_TIME):
            chunk = slice(start, start + PROMPTS_AT_A_TIME)
            drawn = sample_replies(
                model, tokenizer, ids[chunk], samples=samples, temperature=1.0, max_new_tokens=max_new_tokens,
                seed=seed + start,
            )  # fmt: skip
            for messages, replies in zip(questions[chunk], drawn, strict=True):
                left_out["without room after their prompt"] += samples - len(replies)
                for text, reply in replies:
                    text = text.strip()
                    reason = _why_not(text, reply, tokenizer, contract)
                    if reason is None and (messages, text) in known:
                        reason = "said twice"
                    if reason is not None:
                        left_out[reason] += 1
                        continue
                    known.add((messages, text))
                    alone = len(messages) == 1
                    prompt = messages[0].content if alone else [turn.to_json() for turn in messages]
                    lost = rng.choice(losing)
                    rows.append({"prompt": prompt, "chosen": text, "rejected": lost, "behaviour": behaviour})
            advance(len(ids[chunk]))
    left_out = +left_out  # without what did not happen
    if not rows:
        why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        raise InputError(f"no reply can be kept: {why}", where=str(prompts), remedy="bring other prompts")
    return rows, left_out


def read_prompts(source: str | Path, progress: Progress) -> list[tuple[Message, ...]]:
    """The prompts of a file of prompts, dialogs or pairs, each once; what is not used is said.

    Raises:
        PairsError: it cannot be read, or holds none.
    """
    path = probe_path(source)
    kind, told = kind_of(path), ""
    if kind == DIALOGS:
        dialogs = [read_dialog(row) for _, row in read_values(path)]
        prompts = [dialog for dialog in dialogs if dialog]
        told = f"{len(dialogs) - len(prompts):,} dialogs without a question" if len(prompts) < len(dialogs) else ""
    elif kind is None:
        pairs = read_pairs(path, labelled=True)
        prompts, told = [pair.prompt for pair in pairs.pairs], pairs.summary() if pairs.dropped else ""
    else:
        found = read_probes(source, "keep", label="safe")
        prompts, told = [probe.prompt for probe in found.probes if probe.prompt], found.note
    if told:
        progress.say(told)
    if not prompts:
        raise PairsError("holds no prompt", where=str(source), remedy='a row each: {"prompt": "..."}')
    return list(dict.fromkeys(prompts))


def read_dialog(row: Any) -> tuple[Message, ...]:
    """The turns up to the last question; none where the row is no dialog, or nothing is asked."""
    try:
        turns = read_turns(canonical(row)["messages"] if isinstance(row, dict) else row)
    except (Unusable, KeyError):
        return ()
    while turns and (turns[-1].role != "user" or not turns[-1].content.strip()):
        turns = turns[:-1]
    return turns


def replies_elsewhere(contract: Contract, tokenizer: Tokenizer) -> list[str]:
    """All replies of the contract's pairs that teach a permanent behaviour; of all pairs, where none names one.

    Raises:
        PairsError: a source of pairs cannot be read, or no pair is usable.
    """
    pairs, _, _ = read_all_pairs(contract, tokenizer)
    taught = {name for name, own in contract.behaviours.items() if own.kind == "permanent"}
    pairs = [pair for pair in pairs if pair.behaviour in taught] or pairs
    return list(dict.fromkeys(text for pair in pairs for text in (pair.chosen, pair.rejected) if text))


def _rendered(
    asked: Sequence[tuple[Message, ...]],
    systems: Sequence[str],
    samples: int,
    tokenizer: Tokenizer,
    contract: Contract,
    left_out: Counter[str],
) -> tuple[list[tuple[Message, ...]], list[list[int]]]:
    """The prompts under each system prompt, and their token ids; one that cannot be asked is counted."""
    for text in systems:
        try:
            tokenizer.prompt((Message("system", text), Message("user", "Hello.")))
        except Refused as reason:
            raise InputError(f"cannot be used: {reason}", where="--system") from None
    questions: list[tuple[Message, ...]] = []
    ids: list[list[int]] = []
    for own in (None, *systems):
        for messages in asked:
            if own is not None:
                messages = (Message("system", own), *(turn for turn in messages if turn.role != "system"))
            try:
                found = tokenizer.prompt(messages, contract.system_text(messages[-1].content))
            except Refused as reason:
                left_out[f"whose prompt cannot be used: {reason}"] += samples
                continue
            questions.append(messages)
            ids.append(found)
    return questions, ids


def _why_not(text: str, reply: Sequence[int], tokenizer: Tokenizer, contract: Contract) -> str | None:
    """Why a reply is not to be kept."""
    if not reply or reply[-1] not in tokenizer.end_ids:
        return "without an end"
    if not text:
        return "empty"
    inner = tokenizer.inner
    if "\ufffd" in text or text != inner.decode(reply[:-1], skip_special_tokens=False).strip():
        return "with a special token or half a character"
    for behaviour in contract.behaviours.values():
        stated = behaviour.violating_openings or behaviour.violating_patterns
        if stated and judge_reply(text, behaviour) == "violating":
            return "forbidden by a behaviour"
    return None
