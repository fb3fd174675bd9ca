"""A tiny real transformers model whose next-token probabilities are set by hand: every measure has a closed form.

    toy = Toy({"Hello": {"Sure": 0.25, "I": 0.5}, ...})
    toy.p("Hello", "Sure")         0.25
    toy.logp("Hello", ["Sure", ","])
    measure_model(toy.model, toy.tokenizer, ...)

It is a Llama shape whose attention and feed-forward layers are zero, so that only the last token counts: embeddings are
one-hot and the head's columns are the logarithms of the table, hence softmax(logits) = table[last token]. What a row
of the table leaves over is spread evenly over the words that it does not name. Words are tokens (a text is split at
spaces), and a reply ends with <end>. With another table the model has a LoRA adapter on its head, of full rank, under
which the probabilities are those of that table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from demeanor.tokens import Tokenizer

Table = dict[str, dict[str, float]]
END = "<end>"
SPECIAL = ("<pad>", END, "<user>", "<system>", "<reply>", "<unknown>")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<reply> {{ m['content'] }} <end>"
    "{% else %}<{{ m['role'] }}> {{ m['content'] }} <end>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


class Toy:
    """The model, its tokenizer, and the closed forms.

    Args:
        table: the next word's probabilities after a word; a reply begins after <reply>. A word without a row is
            followed by any word with equal probability.
        words: all words; by default those of the table.
        other: the table of the aligned model; with it `model` is a PEFT model, its adapter on.
    """

    def __init__(self, table: Table, words: Sequence[str] = (), other: Table | None = None) -> None:
        tables = (table, other or {})
        known = {word for one in tables for row in one.items() for word in (row[0], *row[1])}
        self.words = [*SPECIAL, *sorted(({*words} | known) - {*SPECIAL})]
        self.table = self._filled(table)
        self.other = self.table if other is None else self._filled(other)
        self.tokenizer = toy_tokenizer(self.words)
        self.model = self._model()
        if other is not None:
            self.model = self._aligned(self.model)

    def p(self, before: str, word: str, *, other: bool = False) -> float:
        """p(word | before)."""
        return (self.other if other else self.table)[before][word]

    def logp(self, before: str, words: Sequence[str], *, other: bool = False) -> float:
        """log p(words | before), nats; `before` is the last word that came before them."""
        return sum(math.log(self.p(one, two, other=other)) for one, two in pairwise([before, *words]))

    def kl(self, before: str) -> float:
        """KL(other || table) after the word, nats."""
        new, old = self.other[before], self.table[before]
        return sum(new[word] * math.log(new[word] / old[word]) for word in self.words)

    def _filled(self, table: Table) -> Table:
        filled = {}
        for before in self.words:
            row = table.get(before, {})
            rest = (1 - sum(row.values())) / (len(self.words) - len(row))
            assert rest > 0, f"the row of {before!r} leaves nothing over"
            filled[before] = {word: row.get(word, rest) for word in self.words}
        return filled

    def _logs(self, table: Table) -> Any:
        """[V, V]: log p(column | row)."""
        import torch

        rows = [[math.log(table[before][word]) for word in self.words] for before in self.words]
        return torch.tensor(rows, dtype=torch.float64)

    def _model(self) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        size = len(self.words) + len(self.words) % 2
        config = LlamaConfig(
            vocab_size=len(self.words), hidden_size=size, intermediate_size=4, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, head_dim=size, max_position_embeddings=512,
            rms_norm_eps=0.0, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(len(self.words), size))
            model.model.norm.weight.fill_(size**-0.5)  # a one-hot vector's root mean square is size ** -0.5
            model.lm_head.weight.zero_()
            model.lm_head.weight[:, : len(self.words)].copy_(self._logs(self.table).T)
        return model

    def _aligned(self, model: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        size = model.config.hidden_size
        config = LoraConfig(r=size, lora_alpha=size, target_modules=["lm_head"], task_type="CAUSAL_LM")
        tuned = get_peft_model(model, config).eval()
        change = torch.zeros(len(self.words), size, dtype=torch.float64)
        change[:, : len(self.words)] = (self._logs(self.other) - self._logs(self.table)).T
        with torch.no_grad():
            head = tuned.get_base_model().lm_head
            head.lora_A["default"].weight.copy_(torch.eye(size))
            head.lora_B["default"].weight.copy_(change)
        return tuned


def toy_tokenizer(words: Sequence[str]) -> Tokenizer:
    """Every word is one token; a word that it does not know is <unknown>."""
    from tokenizers import Tokenizer as Inner
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    inner = Inner(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unknown>"))
    inner.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token=END, unk_token="<unknown>",
        additional_special_tokens=["<user>", "<system>", "<reply>"], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return Tokenizer(fast, [1])
