"""One test file under every test client, on every database, in random order, under four workers."""
