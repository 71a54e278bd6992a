"""The page kit: escaping, charts, pictures and style of every page."""
