"""Reviews in your own tool: posts go out to Label Studio or a table, decisions come back line by line.

What cannot be read as one of these forms, or be written in them, is an `ExchangeError`.
"""
