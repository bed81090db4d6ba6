"""How pages look: CSS that reports and the server share."""

STYLE = """
 body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c2733; }
 h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
 .wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
 th, td { padding: .25rem .6rem; border-bottom: 1px solid #e3e8ee; text-align: right; white-space: nowrap; }
 th { background: #f5f7fa; } th:first-child, td:first-child { text-align: left; }
 td { font-variant-numeric: tabular-nums; }
"""
