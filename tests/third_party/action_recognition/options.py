"""Options of the command line."""

import argparse
from pathlib import Path


def parse_options(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_type", default="resnet", choices=["resnet", "plain"])
    parser.add_argument("--n_classes", default=2, type=int)
    parser.add_argument("--fine_tune", action="store_true", help="ten times slower but the head")
    parser.add_argument("--output_dir", default="output", type=Path)
    parser.add_argument("--check_resume", action="store_true", help="go on from save_last.pth")
    parser.add_argument("--epochs", default=4, type=int)
    parser.add_argument("--stop_after", default=None, type=int, help="epochs of this session")
    parser.add_argument("--train_batch_size", default=4, type=int)
    parser.add_argument("--learning_rate", default=0.1, type=float)
    parser.add_argument("--momentum", default=0.9, type=float)
    parser.add_argument("--dampening", default=0.9, type=float)
    parser.add_argument("--nesterov", action="store_true")
    parser.add_argument("--weight_decay", default=1e-3, type=float)
    parser.add_argument("--lr_patience", default=0, type=int, help="epochs without progress")
    parser.add_argument("--seed", default=1, type=int)
    return parser.parse_args(arguments)
