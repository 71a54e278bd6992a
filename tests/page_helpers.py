"""A page as tests read it: tags, raw contents and text, without a browser."""

from __future__ import annotations

import base64
import hashlib
import re
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

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def rules_of(self, policy):
        """The rules of a policy, which allows this page's script and style and nothing else of their kind."""
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == "'none'"
        for what in ("script", "style"):
            digest = base64.b64encode(hashlib.sha256(self.raw[what].encode()).digest()).decode()
            assert rules[f"{what}-src"] == f"'sha256-{digest}'"
        assert "unsafe" not in policy
        return rules

    def rules_of_file(self):
        """The same of the policy that stands in a page which is a file, and asks for nothing outside it."""
        (policy,) = [
            a["content"] for a in self.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
        ]
        names = {name for _, attributes in self.tags for name in attributes}
        assert not names & {"src", "style", "action", "srcset"}
        assert not {name for name in names if name.startswith("on")}
        assert not re.search(r"url\(|@import|https?:", self.raw["style"])
        return self.rules_of(policy)
