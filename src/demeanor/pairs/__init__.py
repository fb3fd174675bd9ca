"""Rows to preference pairs: files found by their content, one reader a shape, and a reason for each row not used."""

from demeanor.pairs.files import read_rows
from demeanor.pairs.read import ReadResult, read_pairs

__all__ = ["ReadResult", "read_pairs", "read_rows"]
