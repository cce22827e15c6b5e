"""How far is every vertex of a surface from a marked one?"""
