"""Pairs and probes as token ids, with the rules that no reply breaks.

1. The tokens of prompt + reply begin with the tokens of the prompt; else the pair is refused.
2. A reply ends with exactly one end-of-turn token; what a template writes after it (a newline, say) is left out.
3. A reply is never cut. A prompt that is too long loses its oldest turns (the system turn stays) and is counted.
4. A text that spells one of the tokenizer's special tokens is refused: it would forge a turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from demeanor.errors import InputError, ModelError, one_line
from demeanor.records import Message, PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Refused(InputError):
    """A text that cannot be turned into tokens by the rules; the message is the reason that is counted."""


class TooLong(Refused):
    """The replies do not fit even after the last turn alone."""


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """A pair as token ids: `prompt_ids` are shared, each reply ends with one end-of-turn token. Of a reply labelled on
    its own the other side is empty. `list_id` and `weight` as in `PreferencePair`."""

    id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    turns_cut: int = 0
    list_id: str | None = None
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        """Tokens to compute for the pair alone: its prompt once, and both replies."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(slots=True)
class Tokenizer:
    """Renders conversations by the model's chat template and encodes them under the rules above.

    Args:
        inner: a Hugging Face tokenizer with a chat template.
        end_ids: the token ids that end a reply; the first is added where a template writes none.
    """

    inner: PreTrainedTokenizerBase
    end_ids: list[int]
    _special: list[str] = field(init=False)

    def __post_init__(self) -> None:
        added = [token.content for token in self.inner.added_tokens_decoder.values() if token.special]
        named = [*self.inner.all_special_tokens, *added, *(self.inner.decode([end]) for end in self.end_ids)]
        self._special = [token for token in dict.fromkeys(named) if token.strip()]

    def prompt(self, messages: tuple[Message, ...], system: str | None = None) -> list[int]:
        """Token ids of the prompt up to and with the header of the reply. `system` is put first when there is none.

        Raises:
            Refused: a text spells a special token.
        """
        turns = with_system(messages, system)
        for turn in turns:
            self._check(turn.content)
        return self._render(turns, add_generation_prompt=True)

    def reply(self, messages: tuple[Message, ...], text: str, system: str | None = None) -> list[int]:
        """Token ids of the reply `text` after the prompt, with exactly one end-of-turn token at its end.

        Raises:
            Refused: the template renders the prompt differently once a reply follows, or a special token is spelt.
        """
        return self._reply(
            messages, text, system, self._render(with_system(messages, system), add_generation_prompt=True)
        )

    def replies(
        self, messages: tuple[Message, ...], texts: Sequence[str], system: str | None = None
    ) -> list[list[int] | None]:
        """`reply` of many texts, encoded in one call; None where it is refused."""
        prompt = self._render(with_system(messages, system), add_generation_prompt=True)
        found: list[list[int] | None] = [None] * len(texts)
        rendered: dict[int, str] = {}
        for place, text in enumerate(texts):
            with contextlib.suppress(Refused):
                self._check(text)
                turns = (*with_system(messages, system), Message("assistant", text))
                rendered[place] = self._text(turns, add_generation_prompt=False)
        if rendered:
            encoded = self.inner(list(rendered.values()), add_special_tokens=False)["input_ids"]
            for place, whole in zip(rendered, encoded, strict=True):
                with contextlib.suppress(Refused):
                    found[place] = self._own_tokens(list(whole), prompt)
        return found

    def _reply(self, messages: tuple[Message, ...], text: str, system: str | None, prompt: list[int]) -> list[int]:
        """`reply`, after the tokens of the prompt, so that they are made once for all replies."""
        self._check(text)
        turns = (*with_system(messages, system), Message("assistant", text))
        return self._own_tokens(self._render(turns, add_generation_prompt=False), prompt)

    def _own_tokens(self, whole: list[int], prompt: list[int]) -> list[int]:
        """The reply's tokens of a whole conversation's."""
        if whole[: len(prompt)] != prompt:
            raise Refused("the prompt's tokens change when the reply follows")
        reply = whole[len(prompt) :]
        for place, token in enumerate(reply):
            if token in self.end_ids:
                return reply[: place + 1]
        return [*reply, self.end_ids[0]]

    def opening(self, text: str, example: tuple[Message, ...] = (Message("user", "Hello."),)) -> list[int]:
        """Token ids of a reply's opening as the template would render it (its own leading space, say), no end.

        Raises:
            Refused: the reply's tokens do not begin with the text alone.
        """
        tokens = self.reply(example, text)[:-1]
        if self.inner.decode(tokens).strip() != text.strip():
            raise Refused(f"the template adds to the opening {text!r}: {self.inner.decode(tokens)!r}")
        return tokens

    def text(self, text: str) -> list[int]:
        """Token ids of a plain text, outside of any conversation, after one token that texts begin with: the
        tokenizer's bos, or else its eos (which is what lm-evaluation-harness conditions a first token on, too).

        Raises:
            Refused: it spells a special token, or has no token.
        """
        self._check(text)
        ids = list(self.inner(text, add_special_tokens=False)["input_ids"])
        if not ids:
            raise Refused("a text without any token")
        first = self.inner.bos_token_id if self.inner.bos_token_id is not None else self.inner.eos_token_id
        return [first, *ids]

    def pair(self, pair: PreferencePair, system: str | None = None, max_length: int | None = None) -> TokenizedPair:
        """The pair's token ids, at most `max_length` for prompt and longer reply.

        Raises:
            Refused: by a rule, or because the replies alone and the last turn do not fit.
        """
        texts = [text for text in (pair.chosen, pair.rejected) if text]
        _, cut, prompt, replies = self._fitted(pair.prompt, texts, system, max_length)
        found = iter(replies)
        chosen, rejected = (next(found) if text else [] for text in (pair.chosen, pair.rejected))
        if chosen == rejected:
            raise Refused("chosen and rejected have the same tokens")
        return TokenizedPair(pair.id, prompt, chosen, rejected, cut, pair.list_id, pair.weight)

    def fit(
        self, messages: tuple[Message, ...], replies: Sequence[str], system: str | None, max_length: int | None
    ) -> tuple[tuple[Message, ...], int]:
        """The prompt without as many of its oldest turns as it takes for every reply to fit, and how many these were.

        Raises:
            Refused: a reply does not fit even after the last turn alone.
        """
        return self._fitted(messages, replies, system, max_length)[:2]

    def _fitted(
        self, messages: tuple[Message, ...], replies: Sequence[str], system: str | None, max_length: int | None
    ) -> tuple[tuple[Message, ...], int, list[int], list[list[int]]]:
        """`fit`, with the tokens of the prompt and of each reply."""
        shorter: tuple[Message, ...] | None = messages
        while shorter is not None:
            prompt = self.prompt(shorter, system)
            ids = [self._reply(shorter, text, system, prompt) for text in replies]
            if max_length is None or len(prompt) + max(map(len, ids), default=0) <= max_length:
                return shorter, len(messages) - len(shorter), prompt, ids
            shorter = without_oldest_turns(shorter)
        raise TooLong(f"longer than max_length even with its last turn alone (max_length={max_length})")

    def _render(self, turns: tuple[Message, ...], *, add_generation_prompt: bool) -> list[int]:
        text = self._text(turns, add_generation_prompt=add_generation_prompt)
        return list(self.inner(text, add_special_tokens=False)["input_ids"])

    def _text(self, turns: tuple[Message, ...], *, add_generation_prompt: bool) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            # a template of a thinking model would else put an empty thought into the reply; others ignore the word
            return str(
                self.inner.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
                )
            )
        except Exception as error:  # a template raises whatever its author wrote
            raise Refused(f"the chat template refuses it: {one_line(error, 120)}") from None

    def without_special(self, text: str) -> str:
        """`text` without what spells a special token."""
        for token in self._special:
            text = text.replace(token, "")
        return text

    def _check(self, text: str) -> None:
        for token in self._special:
            if token in text:
                raise Refused(f"a text spells the special token {token}")


def tokenize_pairs(
    pairs: Iterable[PreferencePair],
    tokenizer: Tokenizer,
    *,
    system: Callable[[str], str | None] = lambda pair_id: None,
    max_length: int | None = None,
) -> tuple[list[TokenizedPair], list[tuple[PreferencePair, str]]]:
    """All pairs as tokens, and those that were refused with the reason. `system(pair.id)` gives the system prompt."""
    kept: list[TokenizedPair] = []
    refused: list[tuple[PreferencePair, str]] = []
    for pair in pairs:
        try:
            kept.append(tokenizer.pair(pair, system(pair.id), max_length))
        except Refused as reason:
            refused.append((pair, str(reason)))
    return kept, refused


def make_tokenizer(inner: Any, end_ids: list[int]) -> Tokenizer:
    """Check once that the template can render a plain conversation, then wrap it.

    A template may close a turn with another token than those that the model's settings name (a base model's
    `<|im_end|>`, say): the first special token after a rendered reply ends a turn as well, and comes first.

    Raises:
        ModelError: it cannot, so that no pair could be used.
    """
    example = (Message("user", "Hello."),)
    tokenizer = Tokenizer(inner, end_ids)
    try:
        tokenizer = Tokenizer(inner, _with_template_end(tokenizer, example))
        tokenizer.opening("Hello")
    except Refused as reason:
        raise ModelError(
            f"its chat template cannot render a plain question and answer: {reason}",
            remedy="set chat_template to plain, chatml, or the path of a jinja file",
        ) from None
    return tokenizer


def _with_template_end(tokenizer: Tokenizer, example: tuple[Message, ...]) -> list[int]:
    special = {place for place, token in tokenizer.inner.added_tokens_decoder.items() if token.special}
    reply = tokenizer.reply(example, "Hello.")
    closing = [token for token in reply if token in special or token in tokenizer.end_ids]
    return list(dict.fromkeys([*closing[:1], *tokenizer.end_ids]))


def with_system(messages: tuple[Message, ...], system: str | None) -> tuple[Message, ...]:
    """`messages` with a system turn first, unless they have one or `system` is None."""
    if system is None or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def without_oldest_turns(messages: tuple[Message, ...]) -> tuple[Message, ...] | None:
    """`messages` without the oldest user turn and what follows up to the next; the system turn stays.
    None when only one user turn is left."""
    head = messages[:1] if messages and messages[0].role == "system" else ()
    body = messages[len(head) :]
    for place, message in enumerate(body[1:], start=1):
        if message.role == "user":
            return (*head, *body[place:])
    return None
