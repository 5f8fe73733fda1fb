"""The microscope: reads a text with a model, and answers with data first and pictures second.

>>> from limelight.microscope import look, write_page
>>> report = look("minilm", "The bank is near the river.", words=["bank"])
>>> report.tables["relations"][0]["other"]
'river'
>>> size = write_page(report, "bank.html")  # doctest: +SKIP
"""

from .look import look
from .page import make_page, write_page
from .report import Report

__all__ = ["Report", "look", "make_page", "write_page"]
