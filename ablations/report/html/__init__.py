"""`report`: a study as one HTML file. Imports neither torch nor lightning."""

from ablations.report.html.page import write_report

__all__ = ["write_report"]
