"""A training script whose dataset class has another name."""

import argparse


class VitonHDDataset:
    pass


def parse_args(words=None):
    return argparse.ArgumentParser().parse_args(words)


def main(args):
    raise AssertionError("a script with a broken contract was run")
