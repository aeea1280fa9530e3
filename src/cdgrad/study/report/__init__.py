"""How a study's results are told: sentences, tables and figures, in a terminal and in files."""
