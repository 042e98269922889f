"""Rendered text: printed words, lines, receipts, charts and tables, drawn when they are asked for."""
