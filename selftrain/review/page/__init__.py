"""The page on which people review posts: a small server on loopback in front of the ledger of reviews.

`session` answers a reviewer's page from ledger and run, `review_app` is the HTTP side and keeps strangers
out, `review_server` the process. The page is one template, one style sheet after the report's, one script;
what posts, agents and files say reaches it as JSON and is set as text alone.
"""
