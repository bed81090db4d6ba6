"""Plans for people: terminal tables, an HTML page, explanations, comparisons with measurements."""
