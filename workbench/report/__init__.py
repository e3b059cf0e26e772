"""A folder of runs as one table: gathered, grouped, drawn, and put on one page."""
