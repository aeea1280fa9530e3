"""The report of a study: sentences, tables and figures, in a terminal and in files."""
