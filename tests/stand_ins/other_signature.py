"""A training script whose ``main`` wants two arguments."""

import argparse


class VitonHDTestDataset:
    pass


def parse_args(input_args=None):
    return argparse.ArgumentParser().parse_args(input_args)


def main(args, accelerator):
    raise AssertionError("a script with a broken contract was run")
