"""Search the settings of a fit."""
