"""Interchangeable attentions: anything called as operator(query, key, value, structure, ...)."""

from ndgpa.operators.base import Operator, SaysMask
from ndgpa.operators.full import Full
from ndgpa.operators.gpa import GPA
from ndgpa.operators.neighborhood import Hydra, Neighborhood
from ndgpa.operators.nothing import Nothing
from ndgpa.operators.nystrom import Nystrom
from ndgpa.operators.performer import Performer

__all__ = [
    "GPA",
    "Full",
    "Hydra",
    "Neighborhood",
    "Nothing",
    "Nystrom",
    "Operator",
    "Performer",
    "SaysMask",
]
