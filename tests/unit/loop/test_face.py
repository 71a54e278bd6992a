"""`import selftrain as st`: the names that a program may use, and how long they take."""

import subprocess
import sys

import pytest

import selftrain

NAMES = [
    "ACTTrainer",
    "CrossReview",
    "FineTuner",
    "HeadTrainer",
    "HumanLabel",
    "HumanReview",
    "OfflinePanel",
    "Post",
    "Prediction",
    "Predictor",
    "Recipe",
    "ReplayedPanel",
    "Reviewers",
    "RoundLimits",
    "RoundResult",
    "Run",
    "RunContext",
    "SelfTrainer",
    "Task",
    "TopK",
    "Trainer",
    "VLMPanel",
    "agents",
    "backbones",
    "draw_posts",
    "errors",
    "load_predictor",
    "load_recipe",
    "load_task",
    "losses",
    "read_manifest",
    "rules",
    "run",
    "selection",
    "split",
    "start",
    "train_agentps",
]

IN_MODULES = {
    "agents": "Agent Candidate Judgment NoPanel Panel State Verdict",
    "backbones": "Backbone",
    "errors": "SelftrainError",
    "losses": "PNULoss RoundLoss",
    "rules": "PosteriorRule Unanimous VerdictRule",
    "selection": "Mixed RandomPosts Selection Selector TopK Uncertain",
}


def test_the_names_are_these_and_each_is_found():
    assert selftrain.__all__ == sorted(selftrain.__all__) == NAMES
    assert all(getattr(selftrain, name) is not None for name in NAMES)
    assert callable(selftrain.run)


@pytest.mark.parametrize("module", IN_MODULES)
def test_what_stands_in_a_module_is_found_there(module):
    assert all(hasattr(getattr(selftrain, module), name) for name in IN_MODULES[module].split())


def test_nothing_heavy_is_imported_with_them():
    program = "import sys, selftrain; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
