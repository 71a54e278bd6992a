"""A page as tests read it: tags, raw contents and text, without a browser."""

from __future__ import annotations

from html.parser import HTMLParser


class ParsedPage(HTMLParser):
    """Every tag with its attributes, the raw contents of scripts and styles by id, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.raw, self.text = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_endtag(self, tag):
        self.text += " "

    def handle_data(self, data):
        if self.cdata_elem:
            key = dict(self.tags[-1][1]).get("id") or self.cdata_elem
            self.raw[key] = self.raw.get(key, "") + data
        else:
            self.text += data

    def words(self):
        return " ".join(self.text.split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
