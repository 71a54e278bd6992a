#!/bin/sh
# Debian's packages that tests need, where they are not there yet:
#     sh install_debian.sh LOOK PACKAGE...
# LOOK is a command that succeeds where nothing is missing.
set -eu
look=$1
shift
if sh -c "$look" >/dev/null 2>&1; then exit 0; fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "no $1, and no apt-get to install it with: the tests that need it will say that they skip" >&2
	exit 0
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
$as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
sh -c "$look"
