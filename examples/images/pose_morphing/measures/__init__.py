"""How good a morph is, what it copied, and what it cost."""
