"""Rows to preference pairs: files found by their content, one reader a shape, and a reason for each row not used."""

from demeanor.pairs.files import read_rows
from demeanor.pairs.read import ReadResult, iter_pairs, read_pairs
from demeanor.pairs.store import PairStore

__all__ = ["PairStore", "ReadResult", "iter_pairs", "read_pairs", "read_rows"]
