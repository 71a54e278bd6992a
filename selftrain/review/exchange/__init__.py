"""Reviews in your own tool: posts go out to Label Studio or a table, decisions come back line by line."""
