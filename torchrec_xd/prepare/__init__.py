"""From raw logs to rows that models read: recipes, their engines, what they learn and write."""
