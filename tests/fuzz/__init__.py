"""Random programs against real databases: each is drawn from a seed, and a witness judges what became of its rows.

``programs`` draws them, ``player`` plays one, ``ledger`` keeps what the application was told of each row, and
``witness`` compares that with the table. ``python -m fuzz 20000`` plays as many as one likes.
"""
