"""The command line: `main.py`, and one file a verb, imported when that verb is used."""
