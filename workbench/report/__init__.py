"""Report on a folder of runs: one table, grouped statistics, figures and an HTML page."""
