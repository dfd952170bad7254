"""What `scripts/bench.py` is made of: the work, the peers, the rounds, the table."""
