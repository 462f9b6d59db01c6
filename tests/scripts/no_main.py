"""A training script without ``main``: it would train while it is imported."""

import argparse


class VitonHDTestDataset:
    pass


def parse_args(words=None):
    return argparse.ArgumentParser().parse_args(words)
