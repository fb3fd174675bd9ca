"""Demeanor turns preference pairs into a language model whose behaviour can be proven.

The verbs are the stages of one journey, the nouns are what the stages hand on:

    rows -> pairs -> curated pairs -> adapter -> scores (before, after) -> verdict -> release
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    # verbs
    "read_pairs": "demeanor.pairs",
    "audit_pairs": "demeanor.audit",
    "curate_pairs": "demeanor.curate",
    "split_pairs": "demeanor.curate",
    "train_adapter": "demeanor.train",
    "measure_model": "demeanor.measure",
    "prove_contract": "demeanor.prove",
    "write_report": "demeanor.report",
    "merge_adapter": "demeanor.release",
    "load_contract": "demeanor.contract",
    "plan_run": "demeanor.plan",
    "run": "demeanor.pipeline",
    "compare_runs": "demeanor.compare",
    # nouns
    "Contract": "demeanor.contract",
    "Workspace": "demeanor.workspace",
    "Message": "demeanor.records",
    "PreferencePair": "demeanor.records",
    "PairStore": "demeanor.pairs",
    "DroppedRow": "demeanor.records",
    "Finding": "demeanor.records",
    "Probe": "demeanor.records",
    "Reply": "demeanor.records",
    "Score": "demeanor.records",
    "Estimate": "demeanor.records",
    "Comparison": "demeanor.records",
    "LimitResult": "demeanor.records",
    "Verdict": "demeanor.records",
    "DemeanorError": "demeanor.errors",
    "InputError": "demeanor.errors",
    "StageError": "demeanor.errors",
    "Interrupted": "demeanor.errors",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from demeanor.audit import audit_pairs
    from demeanor.compare import compare_runs
    from demeanor.contract import Contract, load_contract
    from demeanor.curate import curate_pairs, split_pairs
    from demeanor.errors import DemeanorError, InputError, Interrupted, StageError
    from demeanor.measure import measure_model
    from demeanor.pairs import PairStore, read_pairs
    from demeanor.pipeline import run
    from demeanor.plan import plan_run
    from demeanor.prove import prove_contract
    from demeanor.records import (
        Comparison,
        DroppedRow,
        Estimate,
        Finding,
        LimitResult,
        Message,
        PreferencePair,
        Probe,
        Reply,
        Score,
        Verdict,
    )
    from demeanor.release import merge_adapter
    from demeanor.report import write_report
    from demeanor.train import train_adapter
    from demeanor.workspace import Workspace


def __getattr__(name: str) -> Any:
    """Import a verb or noun when it is first used: `import demeanor` stays fast, and so does `demeanor --help`."""
    if name not in _HOME:
        raise AttributeError(f"module 'demeanor' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
