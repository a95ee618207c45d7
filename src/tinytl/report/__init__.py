"""The report: finished runs beside the paper's figures, as tables and as one page."""
