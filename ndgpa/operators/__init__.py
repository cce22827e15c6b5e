"""Interchangeable attentions: anything called as operator(query, key, value, structure, ...)."""

from ndgpa.operators.base import Operator, SaysMask
from ndgpa.operators.full import Full
from ndgpa.operators.gpa import GPA
from ndgpa.operators.hydra import Hydra
from ndgpa.operators.local_sparse import LocalSparse
from ndgpa.operators.multi_axis import MultiAxis
from ndgpa.operators.neighborhood import Neighborhood
from ndgpa.operators.no_attention import NoAttention
from ndgpa.operators.nystrom import Nystrom
from ndgpa.operators.performer import Performer

__all__ = [
    "GPA",
    "Full",
    "Hydra",
    "LocalSparse",
    "MultiAxis",
    "Neighborhood",
    "NoAttention",
    "Nystrom",
    "Operator",
    "Performer",
    "SaysMask",
]
