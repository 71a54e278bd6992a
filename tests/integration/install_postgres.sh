#!/bin/sh
# The database of the tests of shared answers, where there is none yet: Debian's postgresql. The tests start a
# server of their own from it; the one that the package starts is not touched.
set -eu
if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "no PostgreSQL, and no apt-get to install it with: the tests of shared answers will say that they skip" >&2
	exit 0
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends postgresql >/dev/null
ls -d /usr/lib/postgresql/*/bin
