"""Rows to preference pairs: files found by their content, one reader a shape, and a reason for each row not used."""

from demeanor.pairs.files import read_rows
from demeanor.pairs.read import ReadResult, iter_pairs, read_pairs
from demeanor.pairs.store import PairStore
from demeanor.pairs.view import PairView

__all__ = ["PairStore", "PairView", "ReadResult", "iter_pairs", "read_pairs", "read_rows"]
