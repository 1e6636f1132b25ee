"""Runs as a paper: methods with the exact protocol, tables, figures and what they show, in HTML, Markdown and LaTeX.

    gather (core/reports.py) → Material → compose → Document → html | markdown | latex

Pure: no browser, no Streamlit, no store. Sentences are made from numbers; nothing is interpreted.
"""
