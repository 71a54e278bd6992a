#!/bin/sh
# Label Studio's own converter, in an environment of its own: it pins an older numpy than the project uses.
set -eu
cd "$(dirname "$0")/../.."
if [ -x .venv-label-studio/bin/python ] && .venv-label-studio/bin/python -c "import label_studio_sdk" 2>/dev/null; then exit 0; fi
"${PYTHON:-python3}" -m venv .venv-label-studio
.venv-label-studio/bin/pip install -q "label-studio-sdk>=2.1"
