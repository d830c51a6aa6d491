"""Readers of the files that annotation tools export, one module a format; `formats` has the table of them."""
