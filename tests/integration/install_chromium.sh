#!/bin/sh
# The browser of the page tests, where there is none yet: Debian's chromium, and a font that it can draw with.
# Playwright's own builds are not needed.
set -eu
if command -v chromium >/dev/null 2>&1; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "no chromium on the path, and no apt-get to install it with: the browser tests will say that they skip" >&2
	exit 0
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends chromium fonts-liberation >/dev/null
chromium --version
