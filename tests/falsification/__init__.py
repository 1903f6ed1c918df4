"""Attempts to break certificates: layers made to be hard, an attack on them, and exact arithmetic to judge by.

Nothing here but `campaign` asks the package for more than a certificate: the maps, their activations and their
Jacobians are written again, from the definitions.
"""
