"""A training script whose dataset class has another name."""

import argparse


class VitonHDDataset:
    pass


def parse_args(input_args=None):
    return argparse.ArgumentParser().parse_args(input_args)


def main(args):
    raise AssertionError("a script with a broken contract was run")
