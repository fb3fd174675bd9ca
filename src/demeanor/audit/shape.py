"""Are the rows pairs at all? Those that are none were dropped when they were read; here they are counted."""

from __future__ import annotations

from collections.abc import Iterable

from demeanor.audit.check import Check, Context, Found
from demeanor.pairs.reasons import REMEDIES
from demeanor.statistics import estimate_share


def _find(context: Context) -> Iterable[Found]:
    store, num_rows = context.store, sum(context.store.sources.values())
    for reason, count in store.dropped.most_common():
        share = count / num_rows
        first = ", ".join(f"row {row.row} of {row.source}" for row in store.examples[reason])
        yield Found(
            kind=reason.replace(" ", "_"),
            severity="blocks" if share > context.limits["max_unusable"] else "warns",
            what=f"{count:,} of {num_rows:,} rows are no pair: {reason} ({first}{', ...' if count > 5 else ''})",
            measure="share of the rows",
            estimate=estimate_share(count, num_rows, context.scope.confidence),
            remedy=REMEDIES[reason],
            num_pairs=count,
        )


CHECK = Check(
    name="shape",
    about="rows that cannot be used, and texts that are damaged",
    find=_find,
    limits={"max_unusable": (0.2, "share of the rows that may be unusable for one reason")},
)
