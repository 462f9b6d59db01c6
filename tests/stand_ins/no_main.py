"""A training script without ``main``: it would train while it is imported."""

import argparse


class VitonHDTestDataset:
    pass


def parse_args(input_args=None):
    return argparse.ArgumentParser().parse_args(input_args)
