def draw(q, rows):
    pass
