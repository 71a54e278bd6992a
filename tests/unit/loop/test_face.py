"""`import selftrain as st`: the names that a program may use, and how long they take."""

import subprocess
import sys

import selftrain

NAMES = [
    "ACTTrainer",
    "Agent",
    "Backbone",
    "Candidate",
    "CrossReview",
    "FineTuner",
    "HeadTrainer",
    "HumanLabel",
    "HumanReview",
    "Judgment",
    "Mixed",
    "NoPanel",
    "OfflinePanel",
    "Panel",
    "Post",
    "Prediction",
    "Predictor",
    "RandomPosts",
    "Recipe",
    "ReplayedPanel",
    "Reviewers",
    "RoundLimits",
    "RoundLoss",
    "RoundResult",
    "Run",
    "RunContext",
    "Selection",
    "Selector",
    "SelfTrainer",
    "SelftrainError",
    "State",
    "Task",
    "TopK",
    "Trainer",
    "Uncertain",
    "VLMPanel",
    "Verdict",
    "backbones",
    "draw_posts",
    "load_predictor",
    "load_recipe",
    "load_task",
    "losses",
    "read_manifest",
    "run",
    "split",
    "start",
    "train_agentps",
]


def test_the_names_are_these_and_each_is_found():
    assert selftrain.__all__ == sorted(selftrain.__all__) == NAMES
    assert all(getattr(selftrain, name) is not None for name in NAMES)
    assert callable(selftrain.run)


def test_nothing_heavy_is_imported_with_them():
    program = "import sys, selftrain; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
