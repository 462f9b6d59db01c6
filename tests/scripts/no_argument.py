"""A training script whose ``main`` takes nothing."""

import argparse


class VitonHDTestDataset:
    pass


def parse_args(words=None):
    return argparse.ArgumentParser().parse_args(words)


def main():
    raise AssertionError("a script with a broken contract was run")
