"""Tiny random models of every architecture that transformers maps, and what nestquant makes of each.

configurations.py has their settings, tiny.py builds them, stages.py takes one through the command line and through
from_pretrained, children.py keeps a crash to one stage, and verdicts.py judges a finished case.
"""
