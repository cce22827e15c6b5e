"""Interchangeable attentions: anything called as operator(query, key, value, structure, ...)."""

from ndgpa.operators.base import Operator
from ndgpa.operators.full import Full
from ndgpa.operators.gpa import GPA
from ndgpa.operators.nothing import Nothing

__all__ = ["GPA", "Full", "Nothing", "Operator"]
