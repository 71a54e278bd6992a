"""Pages in a browser, listened to: what they say, throw, ask and fetch."""

from __future__ import annotations

from contextlib import contextmanager

DESKTOP = {"width": 1280, "height": 900}


class Pages:
    """Opens pages, each in a context of its own, and keeps what all of them do unasked."""

    def __init__(self, browser):
        self._browser = browser
        self._contexts = []
        self.noise, self.fetched, self.refused = [], [], []

    def open(self, address, *, viewport=DESKTOP, **options):
        context = self._browser.new_context(viewport=viewport, **options)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self.noise.append(message.text))
        page.on("pageerror", lambda error: self.noise.append(str(error)))
        page.on("dialog", lambda dialog: (self.noise.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.fetched.append(request.url))
        page.on("requestfailed", lambda request: self.refused.append((request.url, request.failure)))
        page.goto(address)
        return page

    def close(self):
        for context in self._contexts:
            context.close()


@contextmanager
def listening(browser):
    """Pages that in the end have said, thrown and asked nothing."""
    pages = Pages(browser)
    yield pages
    pages.close()
    assert pages.noise == []
