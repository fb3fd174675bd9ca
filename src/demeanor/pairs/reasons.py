"""Why a row was not used: the short, stable texts that are counted, in the order in which a row is checked."""

from __future__ import annotations

NOT_THE_SHAPE = "not the shape of the file"
NO_IMAGES = "images are not supported"
NO_TOOLS = "tools are not supported"
UNKNOWN_ROLE = "unknown role"
PROMPTS_DIFFER = "prompts differ"
EMPTY_PROMPT = "empty prompt"
NOT_USERS_TURN = "last prompt turn is not the user's"
MORE_THAN_ONE_TURN = "reply holds more than one turn"
NOT_ASSISTANTS = "reply is not the assistant's"
EMPTY_REPLY = "empty reply"
IDENTICAL = "chosen and rejected are identical"
NOT_UNICODE = "text is not valid Unicode"
TOO_FEW = "fewer than two replies"
BAD_RANKS = "ranks or scores do not fit the replies"
TWO_RANKS = "one reply at two ranks"
ALL_TIED = "all replies are tied"
BAD_CONFIDENCE = "confidence is not a number from 0 to 1"

REASONS = (
    NOT_THE_SHAPE,
    NO_IMAGES,
    NO_TOOLS,
    UNKNOWN_ROLE,
    PROMPTS_DIFFER,
    EMPTY_PROMPT,
    NOT_USERS_TURN,
    MORE_THAN_ONE_TURN,
    NOT_ASSISTANTS,
    EMPTY_REPLY,
    IDENTICAL,
    TOO_FEW,
    BAD_RANKS,
    TWO_RANKS,
    ALL_TIED,
    NOT_UNICODE,
    BAD_CONFIDENCE,
)

REMEDIES = {  # what to do about such rows; they are left out as they are
    NOT_THE_SHAPE: "give the row the columns of the others",
    NO_IMAGES: "give text pairs",
    NO_TOOLS: "leave out conversations with tools",
    UNKNOWN_ROLE: "name the roles system, user and assistant",
    PROMPTS_DIFFER: "a pair is two replies to one prompt: take out the row, or give both sides the same turns before",
    EMPTY_PROMPT: "give the prompt, or take out the row",
    NOT_USERS_TURN: "end the prompt with the user's turn",
    MORE_THAN_ONE_TURN: "cut the conversation after the reply that was compared",
    NOT_ASSISTANTS: "end both sides with the assistant's turn",
    EMPTY_REPLY: "give both replies, or take out the row; silence cannot be taught",
    IDENTICAL: "take out the row: equal replies teach nothing",
    TOO_FEW: "give at least two replies, or take out the row: one alone is better than none",
    BAD_RANKS: "give each reply one number: a rank (1 is the best) or a score, or list the replies best first",
    TWO_RANKS: "leave a repeated reply at one rank, or take it out",
    ALL_TIED: "take out the row: replies that are all as good teach nothing",
    NOT_UNICODE: "save the file as UTF-8 again from its origin",
    BAD_CONFIDENCE: "give a confidence from 0 to 1, or none",
}


class Unusable(Exception):
    """A row that cannot become a pair."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
