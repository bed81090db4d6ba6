"""Plans for people: tables on the terminal, an HTML page, explanations, checks."""
