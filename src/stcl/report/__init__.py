"""Tables, figures, pages and videos about finished runs: reads result files only, never a model or a data set.

:mod:`stcl.report.video` is imported by name, because it needs PyAV.
"""

from stcl.report.page import write_page, write_report
from stcl.report.results import Protocol, Result, read_metrics, read_result
from stcl.report.tables import Comparison, compare, csv_table, html_table, markdown_table, rich_table

__all__ = [
    "Comparison",
    "Protocol",
    "Result",
    "compare",
    "csv_table",
    "html_table",
    "markdown_table",
    "read_metrics",
    "read_result",
    "rich_table",
    "write_page",
    "write_report",
]
