"""Random programs against real databases: each is drawn from a seed, and a witness judges the rows that it leaves.

``programs`` draws them, ``player`` plays one, ``ledger`` records what the application was told of each row, and
``witness`` compares that with the table. ``python -m fuzz 20000`` plays that many.
"""
